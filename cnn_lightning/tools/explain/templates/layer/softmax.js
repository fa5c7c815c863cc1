// Cross-entropy: the probability of one class, its loss and its gradient.

function pickSoftmax(root, layer) {
  const choice = element("select", { name: "class" }, ...data.names.map((name, index) => element("option", { value: index, textContent: name })));
  const result = element("div", { className: "result" });
  result.setAttribute("aria-live", "polite");
  root.append(element("p", { className: "controls" }, element("label", {}, "class ", choice)), result);

  function render() {
    const { x } = shown.layers[layer.label];
    if (!x) return;
    const n = x.values.length, largest = Math.max(...x.values), powers = Array.from(x.values, (value) => Math.exp(value - largest)), total = sum(powers);
    const k = +choice.value, p = powers[k] / total, target = (k === shown.label ? 1 - layer.smoothing : 0) + layer.smoothing / n;
    const [power, all, share] = equation([powers[k], total], p, (a, b) => a / b);
    const [same, goal, slope] = equation([p, target], p - target, (a, b) => a - b);
    result.replaceChildren(
      line(`The largest input, ${text(largest)}, is subtracted from all ${n} inputs: p is the same, and the powers stay small.`),
      line(`e^(${text(x.values[k])} − ${text(largest)}) = ${power}; the sum of these over all classes is ${all}`),
      line(`p = ${power} / ${all} = ${share}; the gradient of the loss by this input is p − target = ${same} − ${goal} = ${slope}`, "sum"),
      ...(k === shown.label ? [line(`This is the class of the picture: −ln p = ${text(-Math.log(p))}${layer.smoothing ? "; the loss also has small terms for the other classes (label smoothing)" : ", the loss"}.`)] : []),
    );
  }
  choice.addEventListener("change", render);
  choice.value = shown.label;
  whenPicked(() => {
    const place = tracedPlace(layer.from);
    if (place) { choice.value = place[0]; render(); }
  });
  whenShown(render);
}
