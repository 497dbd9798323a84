"""Many runs: a sweep's points, where they run, and searches."""
