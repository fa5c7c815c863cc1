// A chain of layers as columns: each feature map is a node, and lines run between those that feed each other.

{
  const SHOWN = 16, WIDE = 44, TALL = 560, CELLS = [22, 16, 12, 10, 9, 8, 7, 6, 5, 4, 3, 2], CLASSES = 16, BEST = 10;
  const root = document.getElementById("flow"), inner = root.querySelector(".columns"), lens = document.getElementById("lens"), tag = document.getElementById("flow-tag"), said = document.getElementById("flow-said");
  const columns = data.network.columns.map((column, index) => ({ ...column, index, fixed: column.y && unpack(column.y) }));
  const first = columns[2].label;

  // ---- numbers

  // What a column shows now. `step`: a pixel is the mean of a square of so many pixels.
  function now(column) {
    if (column.pixels) return { ...shown.pixels, step: 1 };
    if (column.probabilities) return { shape: column.shape, values: shown.probabilities, step: 1 };
    const whole = column.label === null ? shown.layers[first].x : shown.layers[column.label].y;  // all maps
    if (whole && whole.values.length === sizeOf(column.shape)) return { shape: column.shape, values: whole.values, step: 1 };
    return { ...column.fixed, step: column.step };
  }

  const isVector = (column) => column.shape.length === 1;
  const mapOf = ({ shape: [, height, width], values }, index) => values.subarray(index * height * width, (index + 1) * height * width);

  const links = linksOf(columns, now);

  // ---- the columns

  function build(column) {
    const title = column.label === null ? column.title : element("a", { href: `#layer-${[...layers.keys()].indexOf(column.section ?? column.label)}`, textContent: column.title });
    column.box = element("div", { className: "column" }, element("p", { className: "head" }, element("b", {}, title), element("span", { textContent: column.type || "\u00a0" })));
    column.nodes = column.probabilities ? classRows(column) : Array.from({ length: isVector(column) ? 1 : column.count }, () => element("canvas", { className: column.pixels ? "tile photo" : isVector(column) ? "tile cells" : "tile" }));
    column.nodes.forEach((node, index) => {
      Object.assign(node, { tabIndex: -1, role: "button", item: { column, index } });
      node.ariaLabel = `${column.title} ${index}`;
    });
    const stack = element("div", { className: "stack-of-maps" }, ...column.nodes);
    const hidden = (isVector(column) || column.pixels ? 0 : column.shape[0] - SHOWN);
    if (hidden > 0) stack.append(column.more = element("span", { className: "more", textContent: `+${hidden}`, title: `${hidden} more maps` }));
    column.box.append(stack);
    return column.box;
  }

  function classRows(column) {
    const rows = Math.min(column.shape[0], column.shape[0] > CLASSES ? BEST : CLASSES);
    return Array.from({ length: rows }, () => element("div", { className: "class tile" }, element("span", { className: "name" }), element("span", { className: "track" }, element("span", { className: "bar" })), element("span", { className: "number" })));
  }

  // The cells of a vector: their size in CSS pixels, and how many stand side by side.
  function gridOf(column) {
    const n = column.count;
    if (n <= CLASSES) return { n, size: CELLS[0], across: 1 };  // beside the rows of the classes
    const size = CELLS.find((cell) => Math.ceil(n / Math.max(1, Math.floor(WIDE / cell))) * cell <= TALL) ?? CELLS[CELLS.length - 1];
    return { n, size, across: Math.min(n, Math.max(1, Math.floor(WIDE / size))) };
  }

  function paint(column) {
    const array = now(column);
    if (column.probabilities) return paintClasses(column, array.values);
    if (column.pixels) return paintPhotograph(column.nodes[0], array);
    if (isVector(column)) return paintCells(column, array.values.subarray(0, column.count));
    const [, height, width] = array.shape;
    column.scale = scaleOf(array.values.subarray(0, column.count * height * width));
    column.nodes.forEach((node, index) => paintMap(node, mapOf(array, index), height, width, column.scale.high));
  }

  function paintCells(column, values) {
    const { n, size, across } = gridOf(column), canvas = column.nodes[0], sharp = 2, gap = size >= 5 ? 2 : 0;
    column.scale = scaleOf(values);
    canvas.width = across * size * sharp;
    canvas.height = Math.ceil(n / across) * size * sharp;
    Object.assign(canvas.style, { width: `${across * size}px`, height: `${canvas.height / sharp}px` });
    const pen = canvas.getContext("2d");
    values.forEach((value, index) => {
      pen.fillStyle = `rgb(${colorOf(value, column.scale.high)})`;
      pen.fillRect((index % across) * size * sharp, Math.floor(index / across) * size * sharp, size * sharp - gap, size * sharp - gap);
    });
  }

  function paintClasses(column, values) {
    const order = Array.from(values.keys());
    if (values.length > CLASSES) order.sort((a, b) => values[b] - values[a]);
    const best = values.indexOf(Math.max(...values));
    column.nodes.forEach((row, place) => {
      const index = order[place], percent = `${(100 * values[index]).toFixed(1)} %`;
      row.item.index = index;
      row.classList.toggle("best", index === best);
      row.querySelector(".name").textContent = row.title = data.names[index];
      row.querySelector(".bar").style.width = `${100 * values[index]}%`;
      row.querySelector(".number").textContent = percent;
    });
  }

  // ---- places

  // The box of a map, a cell or a class in the picture; a map that is not shown has that of "+16".
  function boxOf(column, index) {
    const node = isVector(column) && !column.probabilities || column.pixels ? column.nodes[0] : column.nodes.find((each) => each.item.index === index) ?? column.more;
    if (!node) return null;
    const box = { x: node.offsetLeft, y: node.offsetTop, width: node.offsetWidth, height: node.offsetHeight };
    if (!isVector(column) || column.probabilities) return box;
    const { size, across } = gridOf(column);
    return { x: box.x + (index % across) * size, y: box.y + Math.floor(index / across) * size, width: size, height: size };
  }

  function wire(column, input, index) {
    const a = boxOf(columns[column.index - 1], input), b = boxOf(column, index);
    if (!a || !b) return "";
    const [x0, y0, x1, y1] = [a.x + a.width, a.y + a.height / 2, b.x, b.y + b.height / 2], middle = (x0 + x1) / 2;
    return `M${x0} ${y0}C${middle} ${y0} ${middle} ${y1} ${x1} ${y1}`;
  }

  function svg(name, attributes) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
    return made;
  }

  const signOf = (strength) => (strength === null ? "plain" : strength < 0 ? "negative" : "positive");
  const wires = svg("svg", { class: "wires", "aria-hidden": "true" }), marks = svg("svg", { class: "marks", "aria-hidden": "true" });
  const rest = svg("g", { class: "rest" }), lit = svg("g", {});
  wires.append(rest, lit);

  // All lines: of a vector's number only the two strongest.
  function drawRest() {
    const paths = {};
    for (const column of columns.slice(1)) {
      if (column.links === "same" && column.count > CLASSES) continue;
      const all = Array.from({ length: Math.min(column.count, 160) }, (_, index) => links.into(column, index).slice(0, isVector(column) ? 2 : SHOWN).map((link) => [...link, index])).flat();
      const seen = column.links === "flatten" ? fanOf(column) : all;
      const most = Math.max(...seen.map(([, strength]) => Math.abs(strength ?? 0)), 1e-30);
      for (const [input, strength, index] of seen) {
        const name = `${signOf(strength)}${strength !== null && Math.abs(strength) > most / 3 ? " strong" : ""}`;
        paths[name] = (paths[name] ?? "") + wire(column, input, index);
      }
    }
    rest.replaceChildren(...Object.entries(paths).map(([name, d]) => svg("path", { class: name, d })));
  }

  // From each map to the middle of its numbers.
  function fanOf(column) {
    const before = columns[column.index - 1], each = isVector(before) ? 1 : before.shape[1] * before.shape[2];
    return Array.from({ length: before.count }, (_, map) => [map, null, Math.floor((map + 0.5) * each)]).filter(([, , index]) => index < column.count);
  }

  // ---- what is looked at

  let current = null;

  function light(item) {
    const { column, index } = item, into = links.into(column, index), from = links.from(column, index);
    const paths = [...into.map((link) => [column, link[0], index, link[1], into]), ...from.map((link) => [columns[column.index + 1], index, link[0], link[1], from])];
    lit.replaceChildren(...paths.map(([target, input, output, strength, all]) => {
      const share = strength === null ? 0.5 : Math.abs(strength) / Math.max(...all.map((link) => Math.abs(link[1])), 1e-30);
      return svg("path", { class: signOf(strength), d: wire(target, input, output), "stroke-width": (1 + 2.5 * share).toFixed(2), "stroke-opacity": (0.4 + 0.6 * share).toFixed(2) });
    }));
    root.classList.add("lighting");
    inner.querySelectorAll(".near").forEach((node) => node.classList.remove("near"));
    const near = (target, each) => target && !isVector(target) && each.forEach(([index]) => target.nodes[target.pixels ? 0 : index]?.classList.add("near"));
    near(columns[column.index - 1], into);
    near(columns[column.index + 1], from);
    current = item;
  }

  function dark() {
    lit.replaceChildren();
    root.classList.remove("lighting");
    inner.querySelectorAll(".near").forEach((node) => node.classList.remove("near"));
    lens.hidden = tag.hidden = true;
    current = null;
  }

  // The name and the value of what is looked at, such as conv1[3, 4, 5] = 0.82; `pixel` is [row, column] of what is shown.
  function words({ column, index, pixel }) {
    const array = now(column);
    if (column.probabilities) return `p(${data.names[index]}) = ${text(shown.probabilities[index])}`;
    if (isVector(column)) return `${column.title}[${index}] = ${text(array.values[index])}`;
    const value = at(array, index, ...pixel), place = pixel.map((each) => each * array.step);
    const color = column.pixels && array.shape[0] === 3 ? [0, 1, 2].map((each) => text(at(array, each, ...pixel))).join(", ") : text(value);
    return `${column.title}[${[...(column.pixels ? [] : [index]), ...place].join(", ")}] = ${color}${array.step > 1 ? ` (mean of ${array.step}×${array.step})` : ""}`;
  }

  function explain(item) {
    const { column, index } = item, into = links.into(column, index);
    if (column.pixels) return "the picture, values from 0 to 1";
    if (column.label === null) return "the picture − mean, ÷ deviation";
    if (column.links === "same") return column.probabilities ? "softmax of all outputs" : "from the map before";
    const signed = into.filter(([, strength]) => strength !== null).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, 3);
    if (!signed.length) return column.links === "flatten" ? `from map ${into[0][0]}` : "from all inputs";
    const name = isVector(column) ? "largest terms" : "strongest kernels (mean)";
    return `${name}: ${signed.map(([input, strength]) => `${input}: ${short(strength)}`).join(", ")}`;
  }

  function look(item, x, y) {
    const { column, index, pixel } = item, array = now(column);
    const parts = [element("b", { textContent: isVector(column) ? column.title : `${column.title}${column.pixels ? "" : `, map ${index}`}` }), element("span", { textContent: explain(item) })];
    if (!isVector(column)) {
      const canvas = element("canvas", {}), [, height, width] = array.shape;
      if (column.pixels) paintPhotograph(canvas, array);
      else paintMap(canvas, mapOf(array, index), height, width, column.scale.high);
      const frame = element("i", { className: "frame" });
      Object.assign(frame.style, { left: `${(100 * pixel[1]) / width}%`, top: `${(100 * pixel[0]) / height}%`, width: `${100 / width}%`, height: `${100 / height}%` });
      parts.unshift(element("span", { className: "big" }, canvas, frame));
    }
    lens.replaceChildren(...parts, ...(column.scale ? [element("span", { className: "scale" }, ...scaleBar(column.scale))] : []));
    tag.textContent = words(item);
    lens.hidden = tag.hidden = false;
    dock(x, y);
  }

  // The value stands beside the pointer, the large map at the lower left of the picture, or at its right if the pointer is there.
  function dock(x, y) {
    const frame = root.getBoundingClientRect(), wide = document.documentElement.clientWidth;
    const left = Math.max(4, frame.left + 8), top = Math.max(4, Math.min(innerHeight, frame.bottom) - lens.offsetHeight - 8);
    const covered = x < left + lens.offsetWidth + 50 && y > top - 50;
    lens.style.left = `${covered ? Math.min(frame.right, wide) - lens.offsetWidth - 8 : left}px`;
    lens.style.top = `${top}px`;
    tag.style.left = `${Math.max(4, x + 16 + tag.offsetWidth > wide ? x - tag.offsetWidth - 12 : x + 16)}px`;
    tag.style.top = `${Math.max(4, Math.min(y - 34, innerHeight - tag.offsetHeight - 4))}px`;
  }

  // What lies under the pointer: a map and its pixel, a cell, or a class.
  function itemAt(event) {
    const node = event.target.closest(".tile");
    if (!node) return null;
    const { column, index } = node.item, box = node.getBoundingClientRect();
    const along = (place, start, size, n) => Math.min(n - 1, Math.max(0, Math.floor(((place - start) / size) * n)));
    if (column.probabilities) return { column, index, node };
    if (isVector(column)) {
      const { n, across } = gridOf(column);
      const cell = along(event.clientY, box.top, box.height, Math.ceil(n / across)) * across + along(event.clientX, box.left, box.width, across);
      return cell < n ? { column, index: cell, node } : null;
    }
    const [, height, width] = now(column).shape;
    return { column, index, node, pixel: [along(event.clientY, box.top, box.height, height), along(event.clientX, box.left, box.width, width)] };
  }

  const isSame = (a, b) => a && b && a.column === b.column && a.index === b.index;

  root.addEventListener("pointermove", (event) => {
    const item = itemAt(event);
    if (!item) return dark();
    if (!isSame(item, current)) light(item);
    current = item;
    look(item, event.clientX, event.clientY);
  });
  root.addEventListener("pointerleave", () => { if (!inner.contains(document.activeElement)) dark(); });
  root.addEventListener("focusout", dark);
  addEventListener("scroll", () => { lens.hidden = tag.hidden = true; }, { passive: true });

  // ---- choosing

  const placeOf = ({ column, index, pixel }) => (isVector(column) ? [index] : [index, ...pixel.map((each) => each * now(column).step)]);

  // Chooses a number; one that is chosen already leads to its layer.
  function choose(item) {
    const { column } = item;
    if (column.label === null) return;
    const place = placeOf(item);
    if (picked.label === column.label && String(picked.place) === String(place)) goTo(column.section ?? column.label);
    else pick(column.label, place);
    said.textContent = `${words(item)}, chosen`;
  }

  root.addEventListener("click", (event) => {
    const item = itemAt(event);
    if (!item) return;
    focus(item, false);
    light(item);
    choose(item);
  });

  // ---- keys

  function focus(item, byKey) {
    const { column, index } = item, node = column.nodes[isVector(column) && !column.probabilities ? 0 : item.place ?? column.nodes.findIndex((each) => each.item.index === index)];
    inner.querySelector('[tabindex="0"]')?.setAttribute("tabindex", "-1");
    node.tabIndex = 0;
    node.ariaLabel = `${words(item)}; ${explain(item)}`;
    node.focus({ preventScroll: !byKey });
    if (!byKey) return;
    light(item);
    const box = boxOf(column, item.index), frame = inner.getBoundingClientRect();
    look(item, frame.left + box.x + box.width, frame.top + box.y + box.height / 2);
    said.textContent = words(item);
  }

  const middleOf = (column) => (isVector(column) ? undefined : now(column).shape.slice(1).map((each) => Math.floor(each / 2)));
  const itemOf = (column, place) => ({ column, index: column.probabilities ? column.nodes[place].item.index : place, pixel: middleOf(column) });
  const rowsOf = (column) => (column.probabilities ? column.nodes.length : column.count);

  function moved(item, [down, right], within) {
    const { column } = item, place = column.probabilities ? column.nodes.findIndex((each) => each.item.index === item.index) : item.index;
    const bounded = (value, n) => Math.min(Math.max(value, 0), n - 1);
    if (within && !isVector(column)) {
      const [, height, width] = now(column).shape;
      return { ...item, pixel: [bounded(item.pixel[0] + down, height), bounded(item.pixel[1] + right, width)] };
    }
    if (down) return { ...itemOf(column, bounded(place + down, rowsOf(column))), pixel: item.pixel };
    const next = columns[bounded(column.index + right, columns.length)];
    const part = rowsOf(column) === rowsOf(next) ? place : Math.floor(((place + 0.5) / rowsOf(column)) * rowsOf(next));
    return itemOf(next, part);
  }

  root.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    const node = event.target.closest(".tile");
    if (!node || (!move && event.key !== "Enter" && event.key !== " ")) return;
    event.preventDefault();
    const item = current ?? { ...node.item, pixel: middleOf(node.item.column) };
    if (move) focus(moved(item, move, event.shiftKey), true);
    else choose(item);
  });
  inner.addEventListener("focusin", ({ target }) => {
    if (target.item && !current && target.matches(":focus-visible")) focus({ ...target.item, pixel: middleOf(target.item.column) }, true);
  });

  // ---- the chosen number, or a path of numbers

  tracers.push((path) => {
    const points = path.map(({ label, place }) => {
      const column = columns.find((each) => each.label === label);
      const box = column && boxOf(column, place[0]);
      if (!box || isVector(column) || place[0] >= column.count) return box;
      const [, height, width] = column.shape;
      return { x: box.x + (box.width * place[2]) / width, y: box.y + (box.height * place[1]) / height, width: box.width / width, height: box.height / height };
    }).filter(Boolean);
    const line = points.map(({ x, y, width, height }) => `${x + width / 2},${y + height / 2}`).join(" ");
    const frames = points.flatMap(({ x, y, width, height }) => ["halo", "mark"].map((name) => svg("rect", { class: name, x: x - 1, y: y - 1, width: Math.max(width, 4) + 2, height: Math.max(height, 4) + 2 })));
    marks.replaceChildren(...["halo", "line"].map((name) => svg("polyline", { class: name, points: line })), ...frames);
  });

  // ---- together

  inner.append(wires, ...columns.map(build), marks);
  columns[0].nodes[0].tabIndex = 0;
  whenShown(() => {
    links.forget();
    columns.forEach(paint);
    drawRest();
    if (current) light(current);
  });
  addEventListener("resize", drawRest);
}
