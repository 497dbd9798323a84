"""Many runs read: tables, statistics, pictures, and the page that shows them.

`runs` reads folders, `tables` puts runs into cells, `comparisons` tests differences, `findings`
says them in sentences, `pictures` draws, `page` and `markdown` show, `write_report` does all.
"""
