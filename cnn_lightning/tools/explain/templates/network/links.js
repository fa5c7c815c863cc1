// What feeds each map or number in a chain of columns, and how strongly: [index, strength]; a strength of null has no sign.

// `now(column)` gives the numbers of a column. Links are kept until `forget`, which is due when the numbers change.
function linksOf(columns, now) {
  const STRONGEST = 12;
  let kept = new Map();

  // The inputs of an output.
  function into(column, index) {
    const before = columns[column.index - 1];
    if (!before) return [];
    if (column.links === "same") return [[before.pixels ? 0 : index, null]];
    if (column.links === "flatten") return [[before.shape.length === 1 ? index : Math.floor(index / (before.shape[1] * before.shape[2])), null]];
    if (column.links === null) return Array.from({ length: before.count }, (_, input) => [input, null]);
    if (!kept.has(column)) kept.set(column, []);
    return kept.get(column)[index] ??= fromWeights(column, before, index) ?? column.links[index] ?? [];
  }

  // The outputs of the next column that an input feeds.
  function from(column, index) {
    const after = columns[column.index + 1], found = [];
    for (let output = 0; output < (after?.count ?? 0); output++) {
      const link = into(after, output).find(([input]) => input === index || column.pixels);
      if (link) found.push([output, link[1]]);
    }
    return found;
  }

  // From the weights, where all are in the page: those of a live page change.
  function fromWeights(column, before, index) {
    const { weight } = shown.layers[column.label];
    if (!weight || weight.shape[0] !== column.shape[0]) return null;
    const inputs = weight.shape[1], taps = sizeOf(weight.shape.slice(2));
    if (weight.shape.length === 2) return strongest(weight.values.subarray(index * inputs, (index + 1) * inputs), now(before).values);
    const groups = before.shape[0] / inputs, first = Math.floor(index / (column.shape[0] / groups)) * inputs;
    return Array.from({ length: inputs }, (_, input) => {
      const place = (index * inputs + input) * taps;
      return [first + input, sum(weight.values.subarray(place, place + taps)) / taps];
    }).filter(([input]) => input < before.count);
  }

  // The largest products, the largest magnitude first.
  function strongest(weights, x) {
    const best = [];
    weights.forEach((weight, input) => {
      const product = weight * x[input];
      if (best.length === STRONGEST && Math.abs(product) <= Math.abs(best[STRONGEST - 1][1])) return;
      let place = best.length;
      while (place > 0 && Math.abs(product) > Math.abs(best[place - 1][1])) place--;
      best.splice(place, 0, [input, product]);
      best.length = Math.min(best.length, STRONGEST);
    });
    return best;
  }

  return { into, from, forget: () => { kept = new Map(); } };
}
