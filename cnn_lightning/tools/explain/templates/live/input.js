// Other pictures: of the test split, drawn, from a file, or from the page's address (#picture=BASE64).

if (live) {
  const shape = data.live.layers[0].x, [channels, height, width] = shape;
  const truth = document.getElementById("truth"), status = document.getElementById("input-status");
  const classChosen = () => truth.value === "" ? null : +truth.value;

  function display(pixels, label, name) {
    truth.value = label ?? "";
    status.textContent = "";
    showPicture(pixels, label, name);
  }

  whenShown(() => {
    const largest = shown.probabilities.reduce((a, b) => Math.max(a, b)), guess = data.names[shown.probabilities.indexOf(largest)];
    document.getElementById("says").textContent = `${guess ?? "nothing"} (${(100 * largest).toFixed(1)} %)`;
  });

  truth.value = shown.known ? shown.label : "";
  truth.addEventListener("change", () => showPicture(shown.pixels, classChosen()));

  // ---- of the test split

  const given = { pixels: shown.pixels, label: shown.known ? shown.label : null, name: shown.name };
  const tests = engine.pictures(data.live.test).map(({ pixels, label }) => ({ pixels, label, name: `a test picture of class ${data.names[label]}` }));
  const thumbs = [given, ...tests].map((each) => {
    const words = each === given ? `the picture that this page was made for, ${each.name}` : each.name;
    const button = element("button", { type: "button", title: words }, element("img", { src: photograph(each.pixels), alt: words }));
    button.addEventListener("click", () => display(each.pixels, each.label, each.name));
    whenShown(() => button.setAttribute("aria-pressed", shown.pixels === each.pixels));
    return button;
  });
  document.getElementById("thumbs").append(...thumbs);

  // ---- drawn

  const invitation = document.getElementById("invitation");
  const paper = document.getElementById("paper"), pen = paper.getContext("2d");
  const levels = brightness([given, ...tests].map(({ pixels }) => pixels));
  const ink = new Float32Array(height * width);  // 0 where nothing is drawn, 1 in the middle of a stroke
  const cursor = { row: Math.floor(height / 2), column: Math.floor(width / 2), visible: false };
  const stroke = Math.max(0.6, 0.055 * height);  // half of the width of a line, in pixels
  let last = null, waits = false;

  // The brightness of paper and ink: what is at the border of the pictures, and the other end.
  function brightness(pictures) {
    let total = 0, count = 0;
    for (const { values } of pictures) {
      values.forEach((value, index) => {
        const row = Math.floor(index / width) % height, column = index % width;
        if (row % (height - 1) === 0 || column % (width - 1) === 0) { total += value; count++; }
      });
    }
    return total / count < 0.5 ? { paper: 0, ink: 1 } : { paper: 1, ink: 0 };
  }

  // Paints a dot with a soft edge; places are in pixels, and (0.5, 0.5) is the middle of the first one.
  function dot(row, column) {
    for (let r = 0; r < height; r++) {
      for (let c = 0; c < width; c++) {
        const far = Math.hypot(r + 0.5 - row, c + 0.5 - column);
        ink[r * width + c] = Math.max(ink[r * width + c], Math.min(1, Math.max(0, 0.5 + stroke - far)));
      }
    }
  }

  function line(from, to) {
    const dots = Math.ceil(4 * Math.hypot(to[0] - from[0], to[1] - from[1])) || 1;
    for (let i = 0; i <= dots; i++) dot(from[0] + (to[0] - from[0]) * i / dots, from[1] + (to[1] - from[1]) * i / dots);
  }

  const drawn = () => Float32Array.from({ length: channels * height * width }, (_, index) => levels.paper + (levels.ink - levels.paper) * ink[index % ink.length]);

  function paint() {
    const image = pen.createImageData(width, height), values = drawn();
    for (let index = 0; index < ink.length; index++) image.data.set([0, 1, 2].map(() => 255 * values[index]).concat(255), 4 * index);
    pen.putImageData(image, 0, 0);
    pen.fillStyle = "#d9822bcc";
    if (cursor.visible) pen.fillRect(cursor.column, cursor.row, 1, 1);
  }

  // Shows the drawing, at most once a frame.
  function changed() {
    invitation.hidden = ink.some((each) => each > 0);
    paint();
    if (waits) return;
    waits = true;
    requestAnimationFrame(() => {
      waits = false;
      const pixels = { shape, values: drawn() };
      display(pixels, shown.name === DRAWN ? classChosen() : null, DRAWN);
    });
  }
  const DRAWN = "drawn here";

  const placeOf = (event) => {
    const box = paper.getBoundingClientRect();
    return [((event.clientY - box.top) / box.height) * height, ((event.clientX - box.left) / box.width) * width];
  };
  paper.addEventListener("pointerdown", (event) => {
    if (event.isTrusted) paper.setPointerCapture(event.pointerId);
    cursor.visible = false;
    last = placeOf(event);
    dot(...last);
    changed();
  });
  paper.addEventListener("pointermove", (event) => {
    if (!last) return;
    const place = placeOf(event);
    line(last, place);
    last = place;
    changed();
  });
  for (const name of ["pointerup", "pointercancel"]) paper.addEventListener(name, () => { last = null; });
  paper.addEventListener("blur", () => { cursor.visible = false; paint(); });
  paper.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], " ": [0, 0] }[event.key];
    if (!move) return;
    event.preventDefault();
    const from = [cursor.row + 0.5, cursor.column + 0.5];
    cursor.row = Math.min(Math.max(cursor.row + move[0], 0), height - 1);
    cursor.column = Math.min(Math.max(cursor.column + move[1], 0), width - 1);
    cursor.visible = true;
    if (event.key !== " " && !event.shiftKey) return paint();
    line(from, [cursor.row + 0.5, cursor.column + 0.5]);
    changed();
  });
  document.getElementById("clear").addEventListener("click", () => {
    ink.fill(0);
    changed();
  });

  // ---- from a file

  const file = document.getElementById("file");
  file.addEventListener("change", () => file.files[0] && load(file.files[0]));

  async function load(chosen) {
    try {
      const picture = await createImageBitmap(chosen);
      display({ shape, values: scaled(picture) }, null, chosen.name);
      status.textContent = `${chosen.name} was scaled by the browser to ${height} × ${width} pixels; cnn-lightning scales a little differently.`;
    } catch {
      status.textContent = `${chosen.name}: expected a picture that the browser can read.`;
    }
  }

  // On white, squeezed or padded to the network's size, grey or in colour: as `data` does with picture files.
  function scaled(picture) {
    const canvas = element("canvas", { width, height }), pen = canvas.getContext("2d");
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, width, height);
    pen.imageSmoothingQuality = "high";
    const longer = Math.max(picture.width, picture.height), pad = data.live.fit === "pad";
    const side = (each, whole) => pad ? Math.max(1, Math.round((whole * each) / longer)) : whole;
    const wide = side(picture.width, width), tall = side(picture.height, height);
    pen.drawImage(picture, Math.floor((width - wide) / 2), Math.floor((height - tall) / 2), wide, tall);
    const found = pen.getImageData(0, 0, width, height).data;
    return Float32Array.from({ length: channels * height * width }, (_, index) => {
      const [red, green, blue] = found.slice(4 * (index % ink.length)), channel = Math.floor(index / ink.length);
      return (channels === 3 ? [red, green, blue][channel] : Math.round(0.299 * red + 0.587 * green + 0.114 * blue)) / 255;
    });
  }

  if (channels === 1 || channels === 3) {
    paper.width = width;
    paper.height = height;
    paper.style.aspectRatio = `${width} / ${height}`;
    paint();
    document.getElementById("drawing").hidden = document.getElementById("loading").hidden = false;
  }

  // ---- from the address

  function fromAddress() {
    const [, packed] = location.hash.match(/^#picture=(.*)$/) ?? [];
    if (packed === undefined) return;
    let bytes = "";
    try {
      bytes = atob(packed.replaceAll("-", "+").replaceAll("_", "/"));
    } catch { /* no base64: no bytes */ }
    const expected = channels * height * width;
    if (bytes.length === expected) display({ shape, values: Float32Array.from(bytes, (letter) => letter.charCodeAt(0) / 255) }, null, "the picture in the page's address");
    else status.textContent = `#picture: expected ${expected} bytes (${shape.join(" × ")}) in base64, got ${bytes.length}.`;
  }
  addEventListener("hashchange", fromAddress);
  fromAddress();
}
