// Max-pooling: the largest number of each window; backward, it gets the whole gradient.

function poolGradX(layer, now, channel, cells) {
  const [, height, width] = now.x.shape, [, rows, columns] = now.grad_y.shape, values = new Float64Array(height * width);
  for (let cell = 0; cell < Math.min(cells, rows * columns); cell++) {
    const { places } = windowOf(layer, now.x.shape, Math.floor(cell / columns), cell % columns);
    const won = winnerOf(patchOf(layer, now.x, channel, places)), [row, column] = pixelOf(layer, places, ...won);
    values[row * width + column] += now.grad_y.values[channel * rows * columns + cell];
  }
  return { height, width, values };
}

const POOL = {
  passes: { forward: FORWARD, dx: BACK_TO_X },

  terms: (layer, now, { pass }) => pass === "forward" ? layer.kernel[0] * layer.kernel[1] : 1,

  paint(layer, now, state, view) {
    const [channel, row, column] = state.place, { places, box } = windowOf(layer, now.x.shape, row, column);
    const patch = patchOf(layer, now.x, channel, places), across = layer.kernel[1], forward = state.pass === "forward";
    const done = forward ? state.term : Infinity, current = forward && state.filling && done > 0 ? [Math.floor((done - 1) / across), (done - 1) % across] : null;
    const won = winnerOf(patch.map((each, i) => each.map((value, j) => i * across + j < done ? value : null)));
    const winner = won && pixelOf(layer, places, ...won), best = won && patch[won[0]][won[1]];
    view.aboutInput.textContent = forward
      ? `x: input channel ${channel}; the frame is the window, rows ${box[0]} to ${box[2] - 1}, columns ${box[1]} to ${box[3] - 1}, the cross its largest value`
      : `gradient of x, channel ${channel}${state.filling ? ", up to this cell" : ""}; the frame is the window, the cross its winner`;
    view.aboutOutput.textContent = forward ? `y: output channel ${channel}` : `g: upstream gradient of channel ${channel}`;
    const marks = { frame: box, crosses: winner ? [winner] : [] };
    if (forward) paintSide(view.input, mapOf(now.x, channel), marks);
    else paintSide(view.input, poolGradX(layer, now, channel, view.filled), { ...marks, limit: largestOf(mapOf(now.grad_y, channel).values) });
    paintSide(view.output, mapOf(forward ? now.y : now.grad_y, channel), { filled: forward ? view.filled : Infinity, spots: [[row, column]] });
    const whole = state.term >= POOL.terms(layer, now, state);
    view.result.replaceChildren(
      element("div", { className: "step" }, titled("window", table(patch, { role: "x", now: current, won }), "x"), "→",
        titled(whole ? "the largest" : "the largest so far", element("strong", { textContent: best === null ? "none yet" : text(best) }), "y")),
      whole ? poolSum(now, state.place, patch, winner) : line(`after ${state.term} of ${POOL.terms(layer, now, state)} numbers`, "running"),
    );
  },
};

function poolSum(now, place, patch, [row, column]) {
  const others = patch.flat().filter((value) => value !== null).length - 1;
  const g = now.grad_y ? `the whole gradient ${text(at(now.grad_y, ...place))}` : "the whole gradient";
  return line(`input (${row}, ${column}) is the largest and gets ${g}; the other ${others} get 0 from this window`, "sum");
}
