// The network as a graph: pointing at a node lights the lines to what feeds it and what it feeds; a click goes to its layer.

{
  const lens = document.getElementById("lens"), { labels } = data.network;

  const levelOf = (box) => box.closest(".level");
  const linesOf = (level) => [...level.querySelectorAll("[data-edges]")].filter((line) => levelOf(line) === level);

  // Lights the lines of a box to other boxes, and where these leave the block around it, those of the block.
  function light(box, ends) {
    const number = box.dataset.item, level = levelOf(box), around = level.parentElement.closest(".block"), beyond = [];
    for (const line of linesOf(level)) {
      const edges = line.dataset.edges.split(" ").map((edge) => edge.split("-"));
      const own = edges.filter(([a, b]) => ends.some((end) => (end === "from" ? a : b) === number));
      if (!own.length) continue;
      line.classList.add("lit");
      own.flat().forEach((other) => {
        if (other === "in") beyond.push("to");
        else if (other === "out") beyond.push("from");
        else graph.box(other).classList.add("near");
      });
      if (own.some(([a]) => a !== "in")) own.forEach(([a]) => a !== "in" && graph.box(a).parentElement.classList.add("lit"));
    }
    if (around && beyond.length) light(around, [...new Set(beyond)]);
  }

  function dark() {
    graph.root.querySelectorAll(".lit, .near").forEach((each) => each.classList.remove("lit", "near"));
  }

  function look(box) {
    dark();
    light(box, ["from", "to"]);
    const label = labels[box.dataset.item], layer = layers.get(label), picture = graph.control(box).querySelector("img.map");
    const name = graph.control(box).title, type = graph.control(box).querySelector(".type").textContent;
    const fed = (end) => [...graph.root.querySelectorAll(".near")].filter((other) => other !== box).filter((other) => isBefore(other, box) === end).map((other) => graph.control(other).title);
    lens.replaceChildren(
      element("b", { textContent: label ?? name }), element("span", { textContent: type }),
      ...(picture ? [element("img", { className: "map", src: picture.src, alt: "" })] : []),
      ...[["fed by", true], ["feeds", false]].filter(([, end]) => fed(end).length).map(([words, end]) => element("span", { textContent: `${words} ${fed(end).join(", ")}` })),
      ...(layer ? [element("span", { className: "hint", textContent: "click: goes to its layer" })] : []),
    );
  }

  const isBefore = (a, b) => Boolean(a.compareDocumentPosition(b) & Node.DOCUMENT_POSITION_FOLLOWING);
  const boxAt = (target) => target.closest("summary, button.node")?.closest("[data-item]");

  graph.root.addEventListener("pointerover", ({ target }) => { if (boxAt(target)) look(boxAt(target)); });
  graph.root.addEventListener("focusin", ({ target }) => { if (boxAt(target)) look(boxAt(target)); });
  graph.root.addEventListener("pointerleave", dark);
  look(boxAt(graph.root.querySelectorAll("button.node")[2]));
  graph.onChosen = (number) => { if (labels[number]) goTo(labels[number]); };
  tracers.push((path) => {
    graph.root.querySelectorAll(".traced").forEach((box) => box.classList.remove("traced"));
    path.forEach(({ label }) => Object.keys(labels).filter((number) => labels[number] === label).forEach((number) => graph.box(number).classList.add("traced")));
  });
}
