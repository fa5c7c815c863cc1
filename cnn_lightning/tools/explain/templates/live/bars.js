// The prediction follows what is shown: the picture, the gradient of its pixels, and the probabilities as bars.

// The classes of the table: all, or of more than 20 the ten most probable and the true one.
function chosenClasses(probabilities) {
  const order = Array.from(probabilities, (_, index) => index);
  if (order.length <= 20) return order;
  const first = order.sort((a, b) => probabilities[b] - probabilities[a]).slice(0, 10);
  return first.includes(shown.label) ? first : [...first, shown.label];
}

if (live) {
  const part = (id, inside) => document.querySelector(`#${id} ${inside}`);

  whenShown(() => {
    const { probabilities, label, known } = shown;
    const best = probabilities.indexOf(probabilities.reduce((a, b) => Math.max(a, b)));
    part("answer-picture", "img").src = photograph(shown.pixels);
    part("answer-picture", "img").alt = `The picture: ${shown.name}`;
    part("answer-picture", "figcaption").textContent = shown.name;
    const truth = !known ? "the true class is not known; the loss below is that of the prediction."
      : best === label ? "which is right." : `but it is ${data.names[label]}.`;
    document.getElementById("verdict").replaceChildren(
      element("strong", { textContent: `Prediction: ${data.names[best] ?? "none, the probabilities are NaN"}` }), `, ${truth}`, element("br"), `Loss: ${text(shown.loss)}`,
      ...(live.weights ? [element("br"), `Weights: ${live.weights}.`] : []), ...(live.wrong.size ? [element("br"), "The backward lacks a term."] : []));
    part("answer-classes", "tbody").replaceChildren(...chosenClasses(probabilities).map((index) => row(index, probabilities[index], index === best, known && index === label)));
  });

  function row(index, probability, best, isTrue) {
    const percent = (100 * probability).toFixed(1), bar = element("span", { className: "bar" });
    bar.style.width = `${percent}%`;
    const name = element("span", { className: "name", textContent: data.names[index] + (isTrue ? " (true)" : "") });
    return element("tr", { className: best ? "best" : "" }, element("th", { scope: "row" }, name), element("td", {}, bar), element("td", { className: "number", textContent: `${percent} %` }));
  }
}

// Pixels (channels, height, width) from 0 to 1 as the address of an image.
function photograph(pixels) {
  const canvas = element("canvas");
  paintPhotograph(canvas, pixels);
  return canvas.toDataURL();
}
