const data = JSON.parse(document.getElementById("data").textContent);
const panel = document.getElementById("panel"), step = document.getElementById("step");
let chosen = null;

function element(name, options = {}, ...children) {
  const made = Object.assign(document.createElement(name), options);
  made.append(...children);
  return made;
}

// The rows of an item for the chosen step: [step, pass, result, errors..., verdict, note].
function rowsOf(item) {
  return item.rows.filter((row) => +step.value === 0 || row[0] === +step.value);
}

function verdictOf(row) {
  return row[row.length - 2];
}

// The gravest verdict of an item and of all that it holds; -1 if nothing in it was compared.
function worst(number) {
  return Math.max(-1, ...data.items.slice(number, data.items[number].last + 1).flatMap((item) => rowsOf(item).map(verdictOf)));
}

function verdictText(index) {
  return index < 0 ? "not compared by itself" : `${data.verdicts[index].mark} ${data.verdicts[index].words}`;
}

// ---- colours

function colour() {
  const counts = Object.fromEntries(data.verdicts.map((each) => [each.verdict, 0]));
  graph.root.querySelectorAll("[data-item]").forEach((box) => {
    const number = +box.dataset.item, index = worst(number), look = data.verdicts[index] ?? { tone: "", mark: "", words: "" };
    for (const other of data.verdicts) box.classList.remove(...other.tone.split(" "));
    if (look.tone) box.classList.add(...look.tone.split(" "));
    const control = graph.control(box);
    control.querySelector(".mark").textContent = look.mark;
    control.querySelector(".words").textContent = look.words;
    if (box.tagName === "BUTTON" && index >= 0) counts[look.verdict] += 1;
  });
  document.querySelectorAll("[data-count]").forEach((count) => {
    const n = counts[count.dataset.count];
    count.textContent = n ? ` (${n} layer${n === 1 ? "" : "s"})` : "";
  });
}

// ---- the panel

function table(item) {
  const rows = rowsOf(item), width = data.columns.length;
  if (!rows.length) return element("p", { textContent: item.last > data.items.indexOf(item) ? "" : "It is not compared by itself: the layers after it are." });
  const made = element("table", { className: "layers" }, element("thead", {}, element("tr", {}, ...data.columns.map((name) => element("th", { scope: "col", textContent: name })))));
  const body = element("tbody");
  for (const row of rows) {
    const verdict = verdictOf(row);
    body.append(element("tr", {}, ...row.slice(0, -2).map((value) => element("td", { textContent: value })),
      element("td", { textContent: verdictText(verdict), className: `verdict ${data.verdicts[verdict].tone}` })));
    if (row[row.length - 1]) body.append(element("tr", {}, element("td", { className: "note", colSpan: width, textContent: row[row.length - 1] })));
  }
  made.append(body);
  const scroll = element("div", { className: "scroll", tabIndex: 0 }, made);
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", `Numbers of ${item.name}`);
  return scroll;
}

function links(title, numbers) {
  if (!numbers.length) return "";
  const shown = numbers.slice(0, 12), more = numbers.length - shown.length;
  return element("p", { className: "near" }, `${title} `, ...shown.map((number) => element("button", { type: "button", textContent: data.items[number].name, onclick: () => graph.reveal(number) })), more ? `and ${more} more` : "");
}

// Shows an item in the panel; `byKey`: whether the focus goes there, too.
function show(number, byKey) {
  chosen = number;
  const item = data.items[number], verdict = worst(number);
  const inside = data.items.map((_, index) => index).slice(number + 1, item.last + 1).filter((index) => data.items[index].last === index && worst(index) > 0).sort((a, b) => worst(b) - worst(a) || a - b);
  const close = element("button", { type: "button", className: "close", textContent: "Close", onclick: () => { panel.className = "idle"; graph.control(graph.box(number)).focus(); } });
  panel.className = "";
  panel.replaceChildren(close, element("h3", { textContent: item.name }),
    element("p", { className: "kind", textContent: [item.type, item.shapes.length ? `output ${item.shapes.join(", ")}` : ""].filter(Boolean).join(", ") }),
    element("p", {}, element("span", { className: `verdict ${data.verdicts[verdict]?.tone ?? ""}`, textContent: verdictText(verdict) })),
    table(item), links("not equal in it:", inside), links("gets its input from", item.from), links("feeds", item.to));
  document.getElementById("said").textContent = `${item.name}: ${data.verdicts[verdict]?.words ?? verdictText(verdict)}`;
  if (byKey) panel.focus({ preventScroll: true });
}

graph.onChosen = show;
step.addEventListener("change", () => { colour(); if (chosen !== null && panel.className !== "idle") show(chosen); });
document.getElementById("unfold").addEventListener("click", () => graph.fold(true));
document.getElementById("fold").addEventListener("click", () => graph.fold(false));
document.querySelectorAll("[data-go]").forEach((link) => link.addEventListener("click", (event) => {
  event.preventDefault();
  graph.reveal(+link.dataset.go);
}));
addEventListener("beforeprint", () => { document.querySelector(".all").open = true; });
addEventListener("keydown", (event) => { if (event.key === "Escape") panel.querySelector(".close")?.click(); });
colour();
