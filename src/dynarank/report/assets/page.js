"use strict";
// What all parts share: the embedded data, the theme, copying, words for screen readers.
const data = JSON.parse(document.getElementById("data").textContent);
const get = (id) => document.getElementById(id);

function element(name, attributes = {}, text = "") {
  const space = ["svg", "g", "rect", "text", "title", "path"].includes(name) ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml";
  const made = document.createElementNS(space, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== "") made.textContent = text;
  return made;
}

function say(words) {
  get("said").textContent = words;
}

const THEMES = { auto: "as the system", light: "light", dark: "dark" };

function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  get("theme").textContent = `Theme: ${theme}`;
  get("theme").setAttribute("aria-label", `Theme: ${THEMES[theme]}`);
}

function stored() {
  try {
    const theme = localStorage.getItem("dynarank-theme");
    return Object.hasOwn(THEMES, theme) ? theme : "auto";
  } catch {
    return "auto"; // a browser may refuse storage to local files
  }
}

setTheme(stored());
get("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  const next = names[(names.indexOf(document.documentElement.dataset.theme ?? "auto") + 1) % names.length];
  setTheme(next);
  say(`Theme: ${THEMES[next]}`);
  try {
    localStorage.setItem("dynarank-theme", next);
  } catch {
    // it then lasts as long as the page
  }
});

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = element("textarea");
    area.value = text;
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    return copied;
  }
}

function choose(name, apply) {
  for (const input of document.querySelectorAll(`input[name="${name}"]`)) {
    input.addEventListener("change", () => apply(input.value));
    if (input.checked) apply(input.value);
  }
}

choose("task", (task) => {
  for (const figure of document.querySelectorAll("#pictures figure")) figure.hidden = figure.dataset.task !== task;
});
choose("score", (score) => {
  for (const row of document.querySelectorAll("#compared tbody tr")) row.hidden = row.dataset.score !== score;
});

// The best setting with no more adapter parameters than asked for, on each task.
function showBest() {
  const limit = Number(get("limit").value);
  for (const item of document.querySelectorAll("#under li")) {
    const fitting = [...item.querySelectorAll("data")].filter((one) => Number(one.value) <= limit);
    const best = fitting.reduce((a, b) => (a === null || Number(b.dataset.score) > Number(a.dataset.score) ? b : a), null);
    const size = best && Math.round(Number(best.value)).toLocaleString("en");
    item.querySelector(".answer").textContent = best ? `${best.textContent}: ${best.dataset.shown} with ${size}` : "none is so small";
  }
}

if (get("limit")) {
  get("limit").addEventListener("input", showBest);
  showBest();
}
