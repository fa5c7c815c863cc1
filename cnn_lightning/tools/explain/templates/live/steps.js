// Gradient steps: one or many, their loss, the weights before and after, and a backward that lacks terms.

if (live) {
  const { net } = live, STEPS = 200, SLICE = 12;  // milliseconds of work after which the page may draw and answer
  const part = (id) => document.getElementById(id);
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const weighted = net.layers.map((layer, index) => ({ layer, index })).filter(({ layer }) => layer.weight);
  const curves = [[]];  // for each start of the weights the points {loss, lacking}
  let left = 0, running = false, start = "";

  const bounded = (input) => Math.min(Math.max(Math.trunc(+input.value) || +input.min, +input.min), +input.max);
  const size = () => part("size") ? bounded(part("size")) : 1;
  const rate = () => Math.max(0, +part("rate").value || 0);

  // ---- steps

  function* step() {
    const done = yield* training.step(size(), rate());
    curves.at(-1).push({ loss: done.before, lacking: live.wrong.size > 0 });
    const count = curves.at(-1).length;
    live.weights = `${start}${count} step${count === 1 ? "" : "s"} on this page`;
    return done;
  }

  // Lets the page draw and answer, without the wait for the next frame.
  const breath = () => new Promise((go) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => { port1.close(); go(); };
    port2.postMessage(null);
  });

  async function run() {
    if (running) { running = false; return; }
    left ||= STEPS;
    begin();
    const began = performance.now();
    let done, made = 0, slice = began, drawn = began, pause = 0;
    while (running && left) {
      const work = step();
      let each = work.next();
      while (!each.done) {
        if (performance.now() - slice > SLICE) {
          await breath();
          slice = performance.now();
        }
        each = work.next();
      }
      done = each.value;
      made++;
      left--;
      if (!Number.isFinite(done.before)) left = 0;
      if (!calm.matches && performance.now() - drawn > pause) {
        const now = performance.now();
        follow();
        drawn = performance.now();
        pause = Math.max(150, 2 * (drawn - now));  // drawing takes at most a third of the time
      }
    }
    report(done, ` ${made} steps in ${((performance.now() - began) / 1000).toFixed(1)} s.`);
    end();
  }

  function begin() {
    running = true;
    for (const id of ["step", "trained", "fresh", "difference"]) part(id).disabled = true;
    part("run").textContent = "Pause";
    part("verdict").setAttribute("aria-live", "off");  // it changes many times a second
  }

  function end() {
    running = false;
    for (const id of ["step", "trained", "fresh", "difference"]) part(id).disabled = false;
    part("run").textContent = left ? `Go on (${left} steps left)` : `Run ${STEPS} steps`;
    follow();
    part("verdict").setAttribute("aria-live", "polite");
  }

  function follow() {
    drawCurves();
    showPicture();
  }

  function report({ before, after, n }, more = "") {
    const [right, tests] = training.right(), later = after();
    part("steps-status").textContent = `Step ${curves.at(-1).length}: loss of this batch (${n} picture${n === 1 ? "" : "s"}) ${text(before)} before, ${text(later)} after.`
      + `${tests ? ` Right: ${right} of the ${tests} test pictures.` : ""}${more}`
      + (Number.isFinite(later) ? "" : " The loss is no number any more: begin again with a smaller learning rate.");
  }

  part("run")?.addEventListener("click", run);
  part("step").addEventListener("click", () => {
    const work = step();
    let each = work.next();
    while (!each.done) each = work.next();
    report(each.value);
    follow();
  });

  function reset(seed) {
    training.reset(seed);
    left = 0;
    start = seed === null ? "" : `random (seed ${seed}), `;
    live.weights = seed === null ? "" : `random (seed ${seed})`;
    if (curves.at(-1).length) curves.push([]);
    if (part("run")) part("run").textContent = `Run ${STEPS} steps`;
    const [right, tests] = training.right();
    part("steps-status").textContent = `${seed === null ? "The weights of the checkpoint" : `Random weights of seed ${seed}`}.${tests ? ` Right: ${right} of the ${tests} test pictures.` : ""}`;
    follow();
  }
  part("trained").addEventListener("click", () => reset(null));
  part("fresh").addEventListener("click", () => reset(Math.max(0, Math.trunc(+part("seed").value) || 0)));

  // ---- the loss

  const svg = (name, attributes, ...children) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };

  function drawCurves() {
    const box = { left: 34, top: 8, width: 438, height: 184 }, shownCurves = curves.slice(-4);
    const losses = shownCurves.flat().map(({ loss }) => loss).filter(Number.isFinite);
    const top = Math.min(Math.max(...losses, 0.01), 2 * Math.log(data.names.length)), steps = Math.max(...shownCurves.map((points) => points.length), 10);
    const x = (index) => box.left + (index / (steps - 1)) * box.width;
    const y = (loss) => box.top + (1 - Math.min(loss, top) / top) * box.height;
    const label = (where, words, anchor) => svg("text", { x: where[0], y: where[1], "text-anchor": anchor }, words);
    part("curve").replaceChildren(
      svg("path", { class: "axes", d: `M${box.left},${box.top} v${box.height} h${box.width}` }),
      label([box.left - 4, box.top + 10], text(+top.toPrecision(2)), "end"), label([box.left - 4, box.top + box.height], "0", "end"),
      label([box.left, box.top + box.height + 16], "step 1", "start"), label([box.left + box.width, box.top + box.height + 16], String(steps), "end"),
      ...shownCurves.flatMap((points, index) => lines(points, index < shownCurves.length - 1, x, y)));
    const last = curves.at(-1);
    const range = last.length ? `${last.length} steps, from ${text(last[0].loss)} to ${text(last.at(-1).loss)}` : "no step yet";
    part("curve").setAttribute("aria-label", `Loss of each batch: ${range}`);
  }

  // A line for each stretch of steps with the same kind of backward; each begins where the one before ends.
  function lines(points, earlier, x, y) {
    const found = [];
    let first = 0;
    for (let index = 1; index <= points.length; index++) {
      if (index < points.length && points[index].lacking === points[first].lacking) continue;
      const stretch = points.slice(Math.max(0, first - 1), index).map(({ loss }, place) => [Math.max(0, first - 1) + place, loss]).filter(([, loss]) => Number.isFinite(loss));
      const kind = `${points[first].lacking ? "lacking" : "whole"}${earlier ? " earlier" : ""}`;
      if (stretch.length === 1) found.push(svg("circle", { class: kind, cx: x(stretch[0][0]), cy: y(stretch[0][1]), r: 2.5 }));
      else found.push(svg("polyline", { class: kind, points: stretch.map(([place, loss]) => `${x(place).toFixed(1)},${y(loss).toFixed(1)}`).join(" ") }));
      first = index;
    }
    return found;
  }
  drawCurves();

  // ---- terms that are left out

  function showTerms() {
    const boxes = [...document.querySelectorAll(".terms input")], filled = (words) => words.replaceAll("{n}", size());
    for (const box of boxes) {
      const without = box.closest("div").querySelector(".without");
      without.hidden = box.checked;
      without.querySelector("q").textContent = `${filled(without.dataset.wrong)} (${filled(without.dataset.mend)})`;
    }
    return boxes.filter((box) => !box.checked);
  }
  document.querySelector(".terms").addEventListener("change", (event) => {
    live.wrong = new Set(showTerms().map((box) => box.value));
    const without = event.target.closest("div").querySelector(".without");
    part("terms-status").textContent = event.target.checked ? "The term is back." : without.textContent;
    showPicture();
  });
  part("size")?.addEventListener("input", showTerms);

  // ---- weights of one kernel, or of one output

  let chosenHere = false;  // then the choice stays when another number is picked elsewhere
  const layerChoice = part("weights-layer"), output = part("weights-output"), input = part("weights-input");
  layerChoice.append(...weighted.map(({ layer }, place) => element("option", { value: place, textContent: layer.label })));
  whenPicked(() => {
    const place = weighted.findIndex(({ layer }) => layer.label === picked.label);
    if (place < 0 || chosenHere) return;
    layerChoice.value = place;
    output.value = picked.place[0] ?? 0;
    showWeights();
  });

  // The layer and the place of the chosen weights: a kernel, or up to nine weights of an output from the chosen input on.
  function chosen() {
    const { layer, index } = weighted[layerChoice.value], shape = layer.shapes.weight;
    output.max = shape[0] - 1;
    input.max = shape[1] - 1;
    const [o, c] = [bounded(output), bounded(input)];
    const [rows, columns] = layer.kind === "conv" ? shape.slice(2) : [1, Math.min(9, shape[1] - c)];
    return { layer, index, o, c, rows, columns, first: (o * shape[1] + c) * (layer.kind === "conv" ? rows * columns : 1) };
  }

  function showWeights() {
    const { layer, index, rows, columns, first } = chosen(), gradient = training.gradients[index].weight;
    const grid = (title, role, value) => titled(title, table(Array.from({ length: rows }, (_, row) =>
      Array.from({ length: columns }, (_, column) => value(first + row * columns + column))), { role }), role);
    const after = (title) => grid(title, "w", (place) => layer.weight[place]);
    const parts = training.rate === 0 ? [after("weights now")] : [
      grid("before", "w", (place) => layer.weight[place] + training.rate * gradient[place]), `− ${text(training.rate)} ×`,
      grid("gradient", "dw", (place) => gradient[place]), "=", after("after")];
    part("weights").replaceChildren(element("div", { className: "step" }, ...parts));
  }
  for (const control of [layerChoice, output, input]) {
    control.addEventListener("input", () => {
      chosenHere = true;
      part("difference-result").textContent = "";
      showWeights();
    });
    control.addEventListener("change", () => { if (control.type === "number") control.value = bounded(control); });
  }
  whenShown(showWeights);

  part("difference").addEventListener("click", () => {
    const { layer, index, o, c, rows, columns, first } = chosen(), row = rows >> 1, column = layer.kind === "conv" ? columns >> 1 : 0;
    const found = training.difference(size(), index, first + row * columns + column);
    const name = layer.kind === "conv" ? [o, c, row, column] : [o, c];
    const apart = Math.abs(found.numerical - found.backward) > 1e-4 * Math.max(Math.abs(found.numerical), Math.abs(found.backward), 1e-6);
    part("difference-result").textContent = `Weight (${name.join(", ")}) of ${layer.label}: numerical (L(w + h) − L(w − h)) / 2h = ${text(found.numerical)}, backward ${text(found.backward)}; h = 0.00001. `
      + (apart ? "They differ: the backward is not the derivative of this forward." : "They agree.");
  });
}
