"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
document.documentElement.classList.add("js");

// A click on a title sorts its table: upwards, then downwards. What has no number stays at the end.
function sortBy(column, heading, body) {
  const turn = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  all("th", heading.parentNode).forEach(other => other.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", turn === 1 ? "ascending" : "descending");
  const key = row => row.cells[column].dataset.value;
  const order = (a, b) => a === "" || b === "" ? (a === "") - (b === "")
    : turn * (heading.className ? a - b : a.localeCompare(b, "en", { numeric: true }));
  body.append(...[...body.rows].sort((a, b) => order(key(a), key(b))));
}
all(".table").forEach(box => {
  const body = box.querySelector("tbody"), words = box.querySelector("input");
  all("th", box).forEach((heading, column) => {
    const button = document.createElement("button");
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => sortBy(column, heading, body));
  });
  words?.addEventListener("input", () => {
    const wanted = words.value.toLowerCase().split(/\s+/);
    for (const row of body.rows) row.hidden = !wanted.every(word => row.textContent.toLowerCase().includes(word));
  });
});

// A box in the legend shows and hides what belongs to a group, in all pictures.
const boxes = all("[data-curve]");
const apply = box => all(`[data-group="${box.dataset.curve}"]`).forEach(part => part.classList.toggle("off", !box.checked));
boxes.forEach(box => box.addEventListener("change", () => apply(box)));
all("[data-show]").forEach(button => button.addEventListener("click", () =>
  boxes.forEach(box => { box.checked = button.dataset.show === "all"; apply(box); })));

// Two runs, side by side as far as they differ.
const runs = JSON.parse(document.getElementById("data").textContent), two = all("#compare select");
two.forEach((select, place) => {
  select.append(...runs.map((run, number) => new Option(run.name, number)));
  select.selectedIndex = Math.min(place, runs.length - 1);
  select.addEventListener("change", compare);
});
function compare() {
  const [a, b] = two.map(select => runs[select.value].values);
  const keys = [...new Set([...Object.keys(a), ...Object.keys(b)])].filter(key => a[key] !== b[key]);
  const cells = keys.map(key => [key, a[key] ?? "-", b[key] ?? "-"]);
  const rows = cells.map(texts => { const row = document.createElement("tr"); texts.forEach(text => row.insertCell().append(text)); return row; });
  document.querySelector("#compare tbody").replaceChildren(...rows);
  document.querySelector("#compare .same").hidden = rows.length > 0;
}
compare();
