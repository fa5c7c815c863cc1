// Grad-CAM over the picture: the strength of the overlay, and on a live page the overlay itself.

const camFigure = document.getElementById("cam");

// The map (height, width): the maps of the last convolution times the mean gradient of the predicted class's logit by each.
function gradCam() {
  const { values: maps, shape: [channels, height, width] } = shown.layers[data.cam.label].y, size = height * width;
  const best = shown.probabilities.indexOf(Math.max(...shown.probabilities));
  const gradient = engine.ofLogit(live.net, data.live, shown.pixels, best)[data.cam.label].values;
  const found = new Float32Array(size);
  for (let channel = 0; channel < channels; channel++) {
    const first = channel * size, mean = sum(gradient.subarray(first, first + size)) / size;
    for (let place = 0; place < size; place++) found[place] += mean * maps[first + place];
  }
  return { best, shape: [height, width], values: found.map((value) => Math.max(0, value)) };
}

// As `heat` in Python: the larger a value, the less transparent its red.
function paintHeat(canvas, { shape: [height, width], values }) {
  canvas.width = width;
  canvas.height = height;
  const pen = canvas.getContext("2d"), image = pen.createImageData(width, height), most = Math.max(...values, 1e-30);
  values.forEach((value, index) => image.data.set([...data.cam.color, Math.floor((value / most) * 255 + 0.5)], 4 * index));
  pen.putImageData(image, 0, 0);
}

function repaintCam() {
  const found = gradCam(), [photograph, heat] = camFigure.querySelectorAll(".stack > *");
  const canvases = [photograph, heat].map((old) => old.tagName === "CANVAS" ? old : element("canvas", { className: old.className, role: "img", ariaLabel: old.alt }));
  canvases.forEach((canvas, index) => [photograph, heat][index].replaceWith(canvas));
  paintPhotograph(canvases[0], shown.pixels);
  paintHeat(canvases[1], found);
  camFigure.querySelector(".words").textContent = `Grad-CAM of ${data.cam.label} for ${data.names[found.best] ?? "no class"}`;
}

if (camFigure) {
  const strength = camFigure.querySelector("input");
  strength.addEventListener("input", () => camFigure.style.setProperty("--strength", strength.value / 100));
  if (live) whenShown(repaintCam);
}
