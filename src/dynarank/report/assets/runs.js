// A run's configuration, results, and the command that repeats it.
function fill(table, lines) {
  const rows = lines.map(([key, value, own]) => {
    const row = element("tr", own ? { class: "own" } : {});
    row.append(element("th", { scope: "row" }, key), element("td", {}, value === null ? "none" : String(value)));
    return row;
  });
  table.tBodies[0].replaceChildren(...rows);
}

function openRun(button) {
  const run = data.runs[Number(button.dataset.run)];
  get("details-title").textContent = run.name;
  get("details-folder").textContent = button.dataset.folder;
  get("command").textContent = run.command ?? "its overrides are not recorded";
  get("copy").hidden = run.command === null;
  get("copy").textContent = "Copy";
  fill(get("configuration"), [
    ...Object.entries(run.own).map(([key, value]) => [key, value, true]),
    ...Object.entries(data.shared).map(([key, value]) => [key, value, false]),
  ]);
  fill(get("results"), Object.entries(run.results).map(([key, value]) => [key, value, false]));
  get("details").showModal();
}

for (const button of document.querySelectorAll("button.details")) button.addEventListener("click", () => openRun(button));
get("copy").addEventListener("click", async () => {
  const copied = await copy(get("command").textContent);
  get("copy").textContent = copied ? "Copied" : "Select and copy";
  say(copied ? "Command copied" : "The browser does not let this page copy");
});
get("details").addEventListener("click", (event) => {
  if (event.target === get("details")) get("details").close(); // outside of it
});
