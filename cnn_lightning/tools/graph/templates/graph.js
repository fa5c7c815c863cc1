"use strict";
// The graph: `graph.onChosen(number, byKey)` is called when a node or a block is chosen; `byKey`: a node, by enter or space.
const graph = {
  root: document.getElementById("graph"),
  onChosen: () => {},
  box: (number) => graph.root.querySelector(`[data-item="${number}"]`),
  control: (box) => (box.tagName === "DETAILS" ? box.firstElementChild : box),

  choose(number, byKey = false) {
    graph.root.querySelector(".chosen")?.classList.remove("chosen");
    graph.root.querySelector("[aria-pressed]")?.removeAttribute("aria-pressed");
    const box = graph.box(number);
    box.classList.add("chosen");
    if (box.tagName === "BUTTON") box.setAttribute("aria-pressed", "true");
    graph.onChosen(number, byKey);
  },

  // Opens the blocks around an item, and brings it into view.
  reveal(number) {
    const box = graph.box(number);
    for (let each = box.parentElement; each !== graph.root; each = each.parentElement) if (each.tagName === "DETAILS") each.open = true;
    graph.choose(number);
    graph.control(box).focus({ preventScroll: true });
    box.scrollIntoView({ block: "center", inline: "center" });
  },

  fold(open) {
    graph.root.querySelectorAll("details").forEach((block) => { block.open = open; });
  },
};

graph.root.addEventListener("click", (event) => {
  const control = event.target.closest("summary, button.node");
  if (control) graph.choose(+control.closest("[data-item]").dataset.item, event.detail === 0 && control.tagName === "BUTTON");
});

// Up and down walk through what is visible; tab does, too.
graph.root.addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const controls = [...graph.root.querySelectorAll("summary, button.node")].filter((each) => each.offsetParent && each.checkVisibility());
  const next = controls[controls.indexOf(document.activeElement) + step];
  if (!next) return;
  event.preventDefault();
  next.focus();
});

// What stands in the middle is seen first, also where the graph is wider than the screen.
graph.root.scrollLeft = (graph.root.scrollWidth - graph.root.clientWidth) / 2;
