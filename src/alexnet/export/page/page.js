// The page's only script. It loads files of its own folder only, and computes everything in the browser.
import * as ort from "./ort.js";

ort.env.wasm.numThreads = 1; // more need headers that most file servers do not send

const MAX_PIXELS = 50e6; // as the classifier's decoder
const TERMS = 8; // largest terms that are listed
const OCCLUSION_PARTS = 7; // the square has a seventh of the image's side, as in `alexnet plot saliency`
const BATCH = 8;
const TILES = 512; // feature maps that are drawn at most

const get = (id) => document.getElementById(id);
const count = (shape) => shape.reduce((a, b) => a * b, 1);
const plain = (name) => name.replaceAll("_", " ");
const percent = (p) => (p < 0.0005 ? "< 0.1 %" : p > 0.9995 && p < 1 ? "> 99.9 %" : `${(100 * p).toFixed(1)} %`);
const number = (x) => (x === 0 ? "0" : String(Number(x.toPrecision(6))).replace("-", "−"));
const turn = () => new Promise((resolve) => setTimeout(resolve)); // lets the browser draw

let meta, session, bytes; // metadata.json, the network, and the model's bytes
let images = null; // uint8 [1, S, S, 3]: the image in stored size
let outputs = null; // layer -> Float32Array, of the image; -1: the network's input; "probabilities"
let run = 0; // a late result for an earlier image is not shown
let selected = { layer: 0, channel: 0, row: 0, column: 0 };
let pinned = false; // a click keeps the unit while the mouse moves

function element(name, text, cls) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (cls) node.className = cls;
  return node;
}

function report(status, problem) {
  get("status").textContent = status || "";
  get("problem").textContent = problem || "";
}

// Loading

async function file(name) {
  const response = await fetch(name).catch(() => null);
  if (!response || !response.ok) throw new Error(`${name} cannot be loaded; copy the whole folder to the server.`);
  return new Uint8Array(await response.arrayBuffer());
}

async function checked(name) {
  const data = await file(name);
  if (crypto.subtle) {
    // pages at http:// of another host have none
    const digest = [...new Uint8Array(await crypto.subtle.digest("SHA-256", data))];
    const unpacked = data[0] !== 0x1f; // by a server that says Content-Encoding: gzip
    if (!unpacked && digest.map((b) => b.toString(16).padStart(2, "0")).join("") !== meta.sha256[name])
      throw new Error(`${name} has changed: its SHA-256 is another one. Export the classifier again.`);
  }
  return data;
}

async function gunzip(data) {
  if (data[0] !== 0x1f || data[1] !== 0x8b) return data;
  const stream = new Blob([data]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function load() {
  try {
    meta = JSON.parse(new TextDecoder().decode(await file("metadata.json")));
    if (meta.format !== "alexnet-web" || meta.version !== 1) throw new Error("metadata.json is of another version.");
    get("model-summary").textContent = `${meta.network}, ${meta.classes.length} classes`;
    showClassifier();
    bytes = await gunzip(await checked("model.onnx.gz"));
    showFilters();
    ort.env.wasm.wasmBinary = await gunzip(await checked("ort.wasm.gz"));
    session = await ort.InferenceSession.create(bytes);
    get("choose").disabled = false;
    report("The model is ready.");
  } catch (error) {
    report("", error.message);
  }
}

// The weights: `tensor(name)` returns a function that reads one value by its index in the flattened tensor.

const tensors = new Map();

function tensor(name) {
  if (!tensors.has(name)) tensors.set(name, reader(meta.tensors[name]));
  return tensors.get(name);
}

function reader(entry) {
  if (entry.kind === "list") return (i) => entry.list[i];
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const { data, values, shape } = entry;
  const row = count(shape.slice(1));
  return {
    float32: (i) => view.getFloat32(data + 4 * i, true),
    float16: (i) => half(view.getUint16(data + 2 * i, true)),
    int8: (i) => view.getInt8(data + i) * view.getFloat32(values + 4 * Math.floor(i / row), true),
    codes: (i) => view.getFloat32(values + 4 * view.getUint8(data + i), true),
  }[entry.kind];
}

function half(bits) {
  const exponent = (bits >> 10) & 31, fraction = bits & 1023;
  const size = exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024);
  return bits >> 15 ? -size : size;
}

// Preprocessing: the integer arithmetic of Pillow's bilinear filter, as in alexnet/data/resize.py

// The weights of `count` result pixels for the part [start, end) of a line: first source pixel, and 22-bit weights.
function windows(length, start, end, count) {
  const scale = (end - start) / count, reach = Math.max(scale, 1);
  return Array.from({ length: count }, (_, i) => {
    const center = start + (i + 0.5) * scale;
    const first = Math.max(Math.trunc(center - reach + 0.5), 0);
    const last = Math.min(Math.trunc(center + reach + 0.5), length);
    const weights = [];
    for (let x = first; x < last; x++) weights.push(Math.max(1 - Math.abs((x - center + 0.5) * (1 / reach)), 0));
    const total = weights.reduce((a, b) => a + b, 0);
    return { first, weights: weights.map((w) => Math.trunc((w / total) * 2 ** 22 + 0.5)) };
  });
}

const level = (sum) => Math.min(Math.max((sum + 2 ** 21) >> 22, 0), 255);

// RGBA pixels of an image -> uint8 [size, size, 3], the part `box` of it, `width` × `height` pixels at `left`, `top`.
function resize(pixels, sides, box, result, width, height, left, top, size) {
  const across = windows(sides[0], box[0], box[2], width), down = windows(sides[1], box[1], box[3], height);
  const begin = down[0].first, end = down[height - 1].first + down[height - 1].weights.length;
  const rows = new Uint8Array((end - begin) * width * 3);
  for (let y = begin; y < end; y++)
    for (let i = 0; i < width; i++) {
      const { first, weights } = across[i];
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        for (let k = 0; k < weights.length; k++) sum += weights[k] * pixels[4 * (y * sides[0] + first + k) + c];
        rows[3 * ((y - begin) * width + i) + c] = level(sum);
      }
    }
  for (let j = 0; j < height; j++)
    for (let i = 0; i < 3 * width; i++) {
      const { first, weights } = down[j];
      let sum = 0;
      for (let k = 0; k < weights.length; k++) sum += weights[k] * rows[3 * width * (first - begin + k) + i];
      result[3 * ((top + j) * size + left) + i] = level(sum);
    }
  return result;
}

const roundEven = (x) => (Math.abs(x % 1) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

// RGBA pixels -> uint8 [S, S, 3], as alexnet.data.decode.fit
function fit(pixels, width, height) {
  const size = meta.stored_size, result = new Uint8Array(size * size * 3);
  if (meta.fit === "pad") {
    const [w, h] = [width, height].map((side) => Math.max(1, roundEven(side * (size / Math.max(width, height)))));
    const left = Math.floor((size - w) / 2), top = Math.floor((size - h) / 2);
    return resize(pixels, [width, height], [0, 0, width, height], result.fill(128), w, h, left, top, size);
  }
  const side = Math.min(width, height), left = (width - side) / 2, top = (height - side) / 2;
  const box = meta.fit === "crop" ? [left, top, left + side, top + side] : [0, 0, width, height];
  return resize(pixels, [width, height], box, result, size, size, 0, 0, size);
}

async function decode(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" }).catch(() => null);
  if (!bitmap) throw new Error(`This is not an image that the browser can read: ${blob.name || "clipboard"}.`);
  const { width, height } = bitmap;
  if (width * height > MAX_PIXELS) throw new Error(`This image is too large: ${width} × ${height} pixels.`);
  const canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white"; // below transparent pixels
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  return { pixels: context.getImageData(0, 0, width, height).data, width, height };
}

// Prediction

const batch = (data, n) => new ort.Tensor("uint8", data, [n, meta.stored_size, meta.stored_size, 3]);
const mask = (data, n) => new ort.Tensor("float32", data, [n, 1, meta.image_size, meta.image_size]);

async function predict(stored) {
  const keep = new Float32Array(meta.image_size ** 2).fill(1);
  const results = await session.run({ images: batch(stored, 1), keep: mask(keep, 1) });
  const layers = new Map(meta.layers.map((_, i) => [i, results[`layer${i}`].data]));
  return layers.set(-1, results.input.data).set("probabilities", results.probabilities.data);
}

async function open(blob) {
  if (!blob || !session) return;
  const current = ++run;
  report("Predicting …");
  await turn();
  try {
    const { pixels, width, height } = await decode(blob);
    const stored = fit(pixels, width, height);
    const results = await predict(stored);
    if (current !== run) return;
    [images, outputs] = [stored, results];
    showImage();
    showPredictions();
    for (const id of ["result", "layers"]) get(id).hidden = false;
    if (get("layer").options.length === 0) fillLayers();
    showLayer();
  } catch (error) {
    if (current === run) report("", error.message);
  }
}

function best() {
  const row = outputs.get("probabilities");
  return [...row.keys()].sort((a, b) => row[b] - row[a]);
}

function showPredictions() {
  const row = outputs.get("probabilities"), order = best().slice(0, 5);
  get("predictions").replaceChildren(
    ...order.map((k) => {
      const item = element("li"), text = element("div", undefined, "label"), rail = element("div", undefined, "rail");
      text.append(element("span", plain(meta.classes[k])), element("span", percent(row[k]), "score"));
      const bar = element("div", undefined, "bar");
      bar.style.width = `${100 * row[k]}%`;
      rail.append(bar);
      item.append(text, rail);
      return item;
    }),
  );
  report(`Best prediction: ${plain(meta.classes[order[0]])}, ${percent(row[order[0]])}.`);
}

// The crop that the network receives
function showImage() {
  const stored = meta.stored_size, side = Math.min(meta.image_size, stored), start = Math.floor((stored - side) / 2);
  const canvas = get("image"), imageData = new ImageData(side, side);
  canvas.width = canvas.height = side;
  for (let i = 0; i < side * side; i++) {
    const at = 3 * ((start + Math.floor(i / side)) * stored + start + (i % side));
    imageData.data.set([images[at], images[at + 1], images[at + 2], 255], 4 * i);
  }
  canvas.getContext("2d").putImageData(imageData, 0, 0);
  get("overlay").hidden = true;
  get("occlusion-note").textContent = "";
}

// The occlusion map: how much the probability of the best class falls when a square of the mean color hides a pixel,
// averaged over the squares that hide it (alexnet.explain.saliency.occlusion).
async function occlude(show = () => {}) {
  const size = meta.image_size, [top] = best(), current = run;
  const step = Math.max(1, roundEven(size / OCCLUSION_PARTS / 2)), side = Math.min(2 * step, size);
  const starts = Array.from({ length: Math.ceil((size - side) / step) + 1 }, (_, i) => i * step);
  const squares = starts.flatMap((y) => starts.map((x) => [y, x]));
  const full = outputs.get("probabilities")[top], falls = new Float32Array(size * size), times = new Float32Array(size * size);
  const inside = function* (y, x) {
    for (let i = y; i < Math.min(y + side, size); i++)
      for (let j = x; j < Math.min(x + side, size); j++) yield i * size + j;
  };
  for (let done = 0; done < squares.length; done += BATCH) {
    const part = squares.slice(done, done + BATCH), n = part.length;
    const keep = new Float32Array(n * size * size).fill(1), copies = new Uint8Array(n * images.length);
    part.forEach(([y, x], i) => {
      copies.set(images, i * images.length);
      for (const at of inside(y, x)) keep[i * size * size + at] = 0;
    });
    const { probabilities } = await session.run({ images: batch(copies, n), keep: mask(keep, n) }, ["probabilities"]);
    if (current !== run) return null;
    part.forEach(([y, x], i) => {
      for (const at of inside(y, x)) {
        falls[at] += full - probabilities.data[i * meta.classes.length + top];
        times[at] += 1;
      }
    });
    show(Math.round((100 * Math.min(done + BATCH, squares.length)) / squares.length));
    await turn();
  }
  return falls.map((fall, i) => fall / Math.max(times[i], 1));
}

async function showOcclusion() {
  get("occlude").disabled = true;
  const map = await occlude((done) => (get("occlusion-note").textContent = `${done} %`));
  get("occlude").disabled = false;
  if (!map) return;
  const size = meta.image_size, canvas = get("overlay"), imageData = new ImageData(size, size);
  const most = map.reduce((a, b) => Math.max(a, b), 0);
  canvas.width = canvas.height = size;
  map.forEach((fall, i) => (imageData.data[4 * i + 3] = 190 * (1 - (most > 0 ? Math.max(fall, 0) / most : 0))));
  canvas.getContext("2d").putImageData(imageData, 0, 0);
  canvas.hidden = false;
  const name = plain(meta.classes[best()[0]]);
  get("occlusion-note").textContent =
    most > 0
      ? `Bright: hiding this part lowers the probability of ${name}, by ${(100 * most).toFixed(1)} points at most.`
      : `Hiding a part never lowers the probability of ${name}.`;
}

// Layers and their feature maps

function shapeOf(layer) {
  const shape = layer < 0 ? [meta.in_channels, meta.image_size, meta.image_size] : meta.layers[layer].output;
  return shape.length === 3 ? shape : [shape[0], 1, 1];
}

const at = ([, height, width], c, y, x) => (c * height + y) * width + x;
const times = (shape) => shape.join(" × ");

function fillLayers() {
  const names = ["input", ...meta.layers.map((layer) => `${layer.name} (${layer.kind})`), "probabilities (softmax)"];
  get("layer").replaceChildren(
    ...names.map((name, i) => {
      const option = element("option", name);
      option.value = String(i - 1);
      return option;
    }),
  );
  get("layer").value = "0";
}

const layerName = (layer) => (layer < 0 ? "the input" : meta.layers[layer].name);
const isSoftmax = (layer) => layer === meta.layers.length;
const valuesOf = (layer) => outputs.get(isSoftmax(layer) ? "probabilities" : layer);
const mapsOf = (layer) => (isSoftmax(layer) ? [meta.classes.length, 1, 1] : shapeOf(layer));

// Towers share the channels, in order; a network of one tower, its input and its classes are in one piece.
function towersOf(layer, channels) {
  const parts = layer >= 0 && layer < meta.layers.length - 1 && channels % meta.towers === 0 ? meta.towers : 1;
  return Array.from({ length: parts }, (_, t) => ({ first: (t * channels) / parts, channels: channels / parts }));
}

function showLayer() {
  const layer = Number(get("layer").value), shape = mapsOf(layer), [channels, height, width] = shape;
  const entry = meta.layers[layer], field = entry && entry.field;
  selected = { layer, channel: 0, row: height >> 1, column: width >> 1 };
  pinned = false;
  for (const node of document.querySelectorAll(".position")) node.hidden = height * width === 1;
  for (const [id, limit] of [["channel", channels], ["row", height], ["column", width]]) get(id).max = limit - 1;
  get("layer-note").textContent = [
    `Output ${times(height * width === 1 ? [channels] : shape)}.`,
    entry && entry.kernel ? `${entry.kernel}.` : "",
    field ? `Receptive field ${Math.min(field[0], meta.image_size)} × ${Math.min(field[0], meta.image_size)} pixels.` : "",
    "Move over the maps, or type numbers; a click keeps the unit.",
  ].join(" ");
  const values = valuesOf(layer);
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) [low, high] = [Math.min(low, value), Math.max(high, value)];
  const towers = towersOf(layer, channels);
  get("maps").replaceChildren(
    ...towers.map(({ first, channels: n }, t) => {
      const box = element("div"), shown = height * width === 1 ? n : Math.min(n, TILES);
      const text = `${towers.length > 1 ? `Tower ${"ab"[t]}: channels` : "Channels"} ${first} to ${first + shown - 1}`;
      const shade = (i) => (255 * (values[i] - low)) / (high - low || 1);
      const paint = (c, y, x) => Array(3).fill(shade(at(shape, first + c, y, x)));
      box.append(element("h3", text), mosaic(shown, height, width, paint, `Feature maps, ${text}`, first));
      return box;
    }),
    element("p", `Black is ${number(low)}, white ${number(high)}.`, "soft"),
  );
  showUnit();
}

// A canvas of `n` tiles; `paint(tile, y, x)` gives red, green and blue. Tiles of one pixel have no gaps.
function mosaic(n, height, width, paint, label, first) {
  const gap = height * width === 1 ? 0 : 1;
  const columns = Math.min(n, Math.max(1, Math.ceil(Math.sqrt((n * (height + gap)) / (width + gap)))));
  const lines = Math.ceil(n / columns), canvas = element("canvas"), box = element("div", undefined, "mosaic");
  canvas.width = columns * (width + gap) - gap;
  canvas.height = lines * (height + gap) - gap;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", label);
  const imageData = new ImageData(canvas.width, canvas.height);
  for (let tile = 0; tile < n; tile++)
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++) {
        const [left, top] = [(tile % columns) * (width + gap) + x, Math.floor(tile / columns) * (height + gap) + y];
        imageData.data.set([...paint(tile, y, x), 255], 4 * (top * canvas.width + left));
      }
  canvas.getContext("2d").putImageData(imageData, 0, 0);
  box.style.width = `${Math.max(canvas.width * (canvas.width < 120 ? 6 : 1.5), 160)}px`;
  box.append(canvas);
  if (first !== undefined) Object.assign(box, { tiles: { n, height, width, gap, columns, first, canvas } });
  return box;
}

// Pointer events of the maps: from a place of a mosaic to its unit
function point(event) {
  const box = event.target.closest(".mosaic");
  if (!box || !box.tiles || (pinned && event.type !== "click")) return;
  const { n, height, width, gap, columns, first, canvas } = box.tiles, area = canvas.getBoundingClientRect();
  const left = Math.floor(((event.clientX - area.left) / area.width) * canvas.width);
  const top = Math.floor(((event.clientY - area.top) / area.height) * canvas.height);
  const tile = Math.floor(top / (height + gap)) * columns + Math.floor(left / (width + gap));
  const [row, column] = [top % (height + gap), left % (width + gap)];
  if (left < 0 || top < 0 || tile >= n || row >= height || column >= width) return;
  pinned = pinned || event.type === "click";
  Object.assign(selected, { channel: first + tile, row, column });
  showUnit();
}

// The selected unit: its place, its receptive field and its arithmetic
function showUnit() {
  const { layer, channel, row, column } = selected;
  for (const [id, value] of Object.entries({ channel, row, column })) if (get(id) !== document.activeElement) get(id).value = value;
  for (const mark of document.querySelectorAll("#maps .mark")) mark.remove();
  for (const box of document.querySelectorAll("#maps .mosaic")) {
    const { n, height, width, gap, columns, first, canvas } = box.tiles, tile = channel - first;
    if (tile < 0 || tile >= n) continue;
    const mark = element("div", undefined, "mark");
    const part = (value, whole) => `${(100 * value) / whole}%`;
    mark.style.left = part((tile % columns) * (width + gap) + column, canvas.width);
    mark.style.top = part(Math.floor(tile / columns) * (height + gap) + row, canvas.height);
    mark.style.width = part(1, canvas.width);
    mark.style.height = part(1, canvas.height);
    box.append(mark);
  }
  showField(layer, row, column);
  const { value, steps, columns, terms, title } = arithmetic(layer, channel, row, column);
  get("value").textContent = `${nameOf(layer, channel, row, column)} = ${number(value)}`;
  get("steps").replaceChildren(...steps.map((step) => element("li", step)));
  get("terms").hidden = !terms || terms.length === 0;
  if (!terms) return;
  get("terms").caption.textContent = title;
  get("terms").tHead.rows[0].replaceChildren(
    ...columns.map((name) => Object.assign(element("th", name), { scope: "col" })),
  );
  get("terms").tBodies[0].replaceChildren(
    ...terms.map((cells) => {
      const line = element("tr");
      line.append(...cells.map((cell) => element("td", typeof cell === "number" ? number(cell) : cell)));
      return line;
    }),
  );
}

function nameOf(layer, channel, row, column) {
  const [channels, height, width] = mapsOf(layer), towers = towersOf(layer, channels);
  const tower = towers.length > 1 ? `tower ${"ab"[Math.floor(channel / towers[0].channels)]}, ` : "";
  const name = layer < 0 ? "input" : isSoftmax(layer) ? `probability of ${plain(meta.classes[channel])}` : meta.layers[layer].name;
  const place = height * width > 1 ? `, row ${row}, column ${column}` : "";
  return isSoftmax(layer) ? name : `${name}[${tower}channel ${channel}${place}]`;
}

function showField(layer, row, column) {
  const field = layer < 0 ? [1, 1, 0.5] : isSoftmax(layer) ? null : meta.layers[layer].field, box = get("field");
  box.hidden = !field;
  if (!field) return;
  const size = meta.image_size, [side, stride, start] = field, clip = (x) => Math.min(Math.max(x, 0), size);
  const part = (position) => {
    const center = start + position * stride;
    return [clip(center - side / 2), clip(center + side / 2)].map((x) => (100 * x) / size);
  };
  const [left, right] = part(column), [top, bottom] = part(row);
  Object.assign(box.style, { left: `${left}%`, top: `${top}%`, width: `${right - left}%`, height: `${bottom - top}%` });
}

// The arithmetic of one unit: {value, steps, and a table of terms}. `value` is computed here, from the layer's inputs.
function arithmetic(layer, c, y, x) {
  const shape = mapsOf(layer), actual = valuesOf(layer)[at(shape, c, y, x)];
  const result = layer < 0 ? { value: actual, steps: ["pixel − mean, in gray levels"] } : isSoftmax(layer) ? softmax(c) : operation(layer, c, y, x);
  if (layer < 0 && meta.divide.some((divisor) => divisor !== 1)) {
    const divisors = meta.divide.length === meta.in_channels ? [meta.divide[c]] : meta.divide;
    result.steps = [`(pixel − mean) / ${divisors.map(number).join(", ")}`];
  }
  if (result.value === undefined) result.value = actual;
  else if (layer >= 0) result.steps.push(`The network's own value: ${number(actual)}`);
  return result;
}

function softmax(c) {
  const logits = outputs.get(meta.layers.length - 1), scaled = logits.map((z) => z / meta.temperature);
  const largest = scaled.reduce((a, b) => Math.max(a, b)), powers = scaled.map((z) => Math.exp(z - largest));
  const total = powers.reduce((a, b) => a + b, 0), value = powers[c] / total;
  const over = meta.temperature === 1 ? "" : ` / ${number(meta.temperature)}, the temperature,`;
  return { value, steps: [`score ${number(logits[c])}${over} − largest score ${number(largest)}`, `exp: ${number(powers[c])}`, `divided by the sum over all classes, ${number(total)}`] };
}

// The activation functions of layer files, as alexnet.cuda_convnet.modules has them
const NEURONS = {
  ident: (x) => x,
  logistic: (x) => 1 / (1 + Math.exp(-x)),
  "log of logistic": (x) => (x < 0 ? x - Math.log1p(Math.exp(x)) : -Math.log1p(Math.exp(-x))),
  log: (x) => Math.log(Math.max(x, 1e-30)),
  relu: (x) => Math.max(x, 0),
  tanh: (x, a, b) => a * Math.tanh(b * x),
  linear: (x, a, b) => a * x + b,
  softrelu: (x) => (x > 4 ? x : Math.log1p(Math.exp(x))),
  square: (x) => x * x,
  sqrt: Math.sqrt,
  abs: Math.abs,
  brelu: (x, a) => Math.min(Math.max(x, 0), a),
  drelu: (x, a) => x - a * Math.tanh(x / a),
};

// The positions of a window that exist in feature maps of a shape
function positions({ size, stride, padding }, [, height, width], y, x) {
  const found = [];
  for (let ky = 0; ky < size; ky++)
    for (let kx = 0; kx < size; kx++) {
      const [yy, xx] = [y * stride - padding + ky, x * stride - padding + kx];
      if (yy >= 0 && yy < height && xx >= 0 && xx < width) found.push({ ky, kx, yy, xx });
    }
  return found;
}

// Which value of an input (i) is multiplied with which weight (w). `part`: the weights of one input of the layer.
function connections(layer, part, shape, output, c, y, x) {
  const filters = output[0], group = Math.floor(c / (filters / (part.groups || 1)));
  if (layer.op === "linear") {
    const size = count(meta.tensors[part.weight].shape.slice(1));
    return Array.from({ length: size }, (_, i) => ({ i: group * size + i, w: c * size + i }));
  }
  const { size } = part, read = part.channels ? part.channels.length : shape[0], each = read / (part.groups || 1);
  // [channel that is read, its number in all filters together]
  const sources = part.sources ? part.sources[c] : Array.from({ length: each }, (_, k) => [group * each + k, c * each + k]);
  const places = positions(part, shape, y, x), found = [];
  for (const [channel, filter] of sources)
    for (const { ky, kx, yy, xx } of places) {
      const i = at(shape, part.channels ? part.channels[channel] : channel, yy, xx);
      let w = (filter * size + ky) * size + kx;
      if (layer.op === "local" && !layer.parts) w = (w * output[1] + y) * output[2] + x;
      else if (layer.op === "local") // in a layer file: [position, channel and place in the window, filter]
        w = ((y * output[2] + x) * each * size * size + w - c * each * size * size) * filters + c;
      found.push({ i, w });
    }
  return found;
}

function placeIn([, height, width], i) {
  const channel = `channel ${Math.floor(i / (height * width))}`;
  return height * width === 1 ? channel : `${channel}, row ${Math.floor(i / width) % height}, column ${i % width}`;
}

function operation(index, c, y, x) {
  const layer = meta.layers[index], [source] = layer.inputs, output = shapeOf(index);
  const input = outputs.get(source), shape = shapeOf(source);
  const [channels, height, width] = shape, own = input[at(shape, c, y, x)];
  const single = height * width === 1;
  const place = (ch, yy, xx) => (single ? `channel ${ch}` : `channel ${ch}, row ${yy}, column ${xx}`);
  const window = () => positions(layer, shape, y, x);
  const pixels = (ch, places) => places.map(({ yy, xx }) => ({ where: place(ch, yy, xx), value: input[at(shape, ch, yy, xx)] }));
  const listed = (items, title) => ({ title, columns: ["input", "value"], terms: items.slice(0, 25).map((item) => [item.where, item.value]) });
  const sum = (values) => values.reduce((a, b) => a + b, 0);
  // A layer that computes each value from one other: the arithmetic of that one comes first
  const after = (value, step) => {
    const before = source >= 0 ? operation(source, c, y, x) : { steps: [] };
    return { ...before, value, steps: [...before.steps, step] };
  };

  switch (layer.op) {
    case "convolution":
    case "local":
    case "linear": {
      const parts = layer.parts || [{ ...layer, weight: `${layer.name}.weight` }], hasBias = `${layer.name}.bias` in meta.tensors;
      const places = layer.op === "local" || layer.unshared; // each has its own bias
      const bias = hasBias ? tensor(`${layer.name}.bias`)(places ? at(output, c, y, x) : c) : 0;
      const terms = parts.flatMap((part, k) => {
        const from = layer.inputs[k], values = outputs.get(from), weight = tensor(part.weight);
        return connections(layer, part, shapeOf(from), output, c, y, x).map(({ i, w }) => {
          const [value, factor] = [values[i], weight(w)];
          return { from, i, input: value, weight: factor, product: value * factor };
        });
      });
      const products = sum(terms.map((t) => t.product));
      const largest = terms.sort((a, b) => Math.abs(b.product) - Math.abs(a.product)).slice(0, TERMS);
      const rest = products - sum(largest.map((t) => t.product));
      const rows = largest.map((t) => {
        const of = shapeOf(t.from), own = placeIn(of, t.i);
        return [parts.length > 1 ? `${layerName(t.from)}, ${own}` : own, t.input, t.weight, t.product];
      });
      if (terms.length > TERMS) rows.push([`${terms.length - TERMS} others`, "", "", rest]);
      return {
        value: products + bias,
        steps: [`sum of ${terms.length} products input × weight: ${number(products)}`, `+ bias: ${number(bias)}`],
        title: "Largest products", columns: ["input", "value", "weight", "product"], terms: rows,
      };
    }
    case "neuron":
      return after(NEURONS[layer.neuron](own, ...layer.numbers), `${layer.kind.split(", tower")[0]} of ${number(own)}`);
    case "weighted": {
      const values = layer.inputs.map((from) => outputs.get(from)[at(shape, c, y, x)]);
      const line = (value, k) => `${k ? "+ " : ""}${number(layer.coefficients[k])} · ${layerName(layer.inputs[k])}: ${number(value)}`;
      return { value: sum(values.map((value, k) => layer.coefficients[k] * value)), steps: values.map(line) };
    }
    case "largest": {
      const values = layer.inputs.map((from) => outputs.get(from)[at(shape, c, y, x)]), value = Math.max(...values);
      return { value, steps: [`largest of ${values.map(number).join(", ")}, from ${layerName(layer.inputs[values.indexOf(value)])}`] };
    }
    case "maxabs": {
      const items = pixels(c, window()), value = items.reduce((a, item) => (Math.abs(item.value) >= Math.abs(a) ? item.value : a), 0);
      return { value, steps: [`of ${items.length} values the one that is farthest from 0`], ...listed(items, "Window") };
    }
    case "relu":
      return after(Math.max(own, 0), `ReLU: max(0, ${number(own)})`);
    case "sigmoid":
      return after(1 / (1 + Math.exp(-own)), `1 / (1 + exp(−(${number(own)})))`);
    case "tanh":
      return after(Math.tanh(own), `tanh(${number(own)})`);
    case "scaled tanh":
      return after(1.7159 * Math.tanh((own * 2) / 3), `1.7159 · tanh(2/3 · ${number(own)})`);
    case "batch":
      return after(own * layer.scale[c] + layer.shift[c], `× scale ${number(layer.scale[c])} + shift ${number(layer.shift[c])}`);
    case "flatten": {
      const [ch, yy, xx] = [Math.floor(c / (height * width)), Math.floor(c / width) % height, c % width];
      return { value: input[c], steps: [`the value of ${place(ch, yy, xx)} of ${layerName(source)}`] };
    }
    case "sum": {
      const [, other] = layer.inputs, wide = shapeOf(other), [yy, xx] = [y * layer.stride, x * layer.stride];
      const shortcut = c < wide[0] ? outputs.get(other)[at(wide, c, yy, xx)] : 0;
      const from = c < wide[0] ? `${layerName(other)}[channel ${c}, row ${yy}, column ${xx}]` : "a new channel of the shortcut";
      return { value: own + shortcut, steps: [`${layerName(source)}: ${number(own)}`, `+ ${from}: ${number(shortcut)}`] };
    }
    case "concat": {
      let [channel, part] = [c, 0];
      while (channel >= shapeOf(layer.inputs[part])[0]) channel -= shapeOf(layer.inputs[part++])[0];
      const value = outputs.get(layer.inputs[part])[at(shapeOf(layer.inputs[part]), channel, y, x)];
      return { value, steps: [`the value of ${place(channel, y, x)} of ${layerName(layer.inputs[part])}`] };
    }
    case "max": {
      const items = pixels(c, window()), value = items.reduce((a, item) => Math.max(a, item.value), -Infinity);
      const where = items.find((item) => item.value === value).where;
      return { value, steps: [`largest of ${items.length} values, at ${where}`], ...listed(items, "Window") };
    }
    case "average":
    case "adaptive":
    case "subsampling": {
      const range = (i, from, to) => [Math.floor((i * from) / to), Math.ceil(((i + 1) * from) / to)];
      let places = layer.op === "adaptive" ? [] : window();
      if (layer.op === "adaptive") {
        const [[top, bottom], [left, right]] = [range(y, height, output[1]), range(x, width, output[2])];
        for (let yy = top; yy < bottom; yy++) for (let xx = left; xx < right; xx++) places.push({ yy, xx });
      }
      const items = pixels(c, places), total = sum(items.map((item) => item.value)), table = listed(items, "Window");
      if (layer.op !== "subsampling") return { value: total / items.length, steps: [`mean of ${items.length} values`], ...table };
      const [w, b] = ["weight", "bias"].map((part) => tensor(`${layer.name}.${part}`)(c));
      return { value: total * w + b, steps: [`sum of ${items.length} values: ${number(total)}`, `× coefficient ${number(w)}`, `+ bias ${number(b)}`], ...table };
    }
    case "norm":
    case "spatial": {
      const items = [], { size, factor, beta, k } = layer;
      if (layer.op === "norm") {
        const each = channels / layer.towers, first = Math.floor(c / each) * each, low = c - Math.floor(size / 2);
        for (let ch = Math.max(low, first); ch < Math.min(low + size, first + each); ch++) items.push(...pixels(ch, [{ yy: y, xx: x }]));
      } else {
        const before = Math.floor(size / 2);
        for (let yy = y - before; yy < y - before + size; yy++)
          for (let xx = x - before; xx < x - before + size; xx++)
            if (yy >= 0 && yy < height && xx >= 0 && xx < width) items.push(...pixels(c, [{ yy, xx }]));
      }
      const squares = sum(items.map((item) => item.value ** 2)), divisor = (k + factor * squares) ** beta;
      return {
        value: own / divisor,
        steps: [`sum of the squares of ${items.length} values: ${number(squares)}`, `divisor (${number(k)} + ${number(factor)} · ${number(squares)})^${number(beta)} = ${number(divisor)}`, `${number(own)} / ${number(divisor)}`],
        ...listed(items, "Neighbors"),
      };
    }
    default:
      return { steps: [`The arithmetic of this layer (${layer.kind}) is not shown.`] };
  }
}

// First filters and the classifier

function showFilters() {
  const first = meta.layers.find((entry) => entry.op === "convolution" && !entry.sources);
  if (!first || meta.layers.indexOf(first) > 1) return;
  const weightOf = (layer) => (layer.parts ? layer.parts[0].weight : `${layer.name}.weight`);
  // In a layer file each tower has its own first layer
  const layers = meta.layers.filter((entry) => entry.op === "convolution" && String(entry.inputs) === String(first.inputs));
  const boxes = layers.flatMap((layer) => {
    const [filters, channels, height, width] = meta.tensors[weightOf(layer)].shape, weight = tensor(weightOf(layer));
    if (![1, 3].includes(channels)) return [];
    const towers = filters % meta.towers === 0 ? meta.towers : 1;
    return Array.from({ length: towers }, (_, t) => {
      const n = filters / towers, each = channels * height * width, box = element("div");
      const limits = Array.from({ length: n }, (_, f) => Math.max(...Array.from({ length: each }, (_, i) => Math.abs(weight((t * n + f) * each + i)))) || 1);
      const paint = (f, y, x) =>
        [0, 1, 2].map((c) => 127.5 + (127.5 * weight((((t * n + f) * channels + (c % channels)) * height + y) * width + x)) / limits[f]);
      const text = towers > 1 ? `Tower ${"ab"[t]}` : layer.name;
      box.append(element("h3", text), mosaic(n, height, width, paint, `Filters of ${layer.name}, ${text}`));
      return box;
    });
  });
  if (boxes.length === 0) return;
  get("filters").replaceChildren(...boxes);
  get("filters-figure").hidden = false;
}

function showClassifier() {
  const rows = [
    ["network", meta.network],
    ["parameters", meta.parameters.toLocaleString("en")],
    ["weights", { fp32: "float32", fp16: "float16", int8: "8-bit integers" }[meta.precision]],
    ["stored image", `${meta.stored_size} × ${meta.stored_size} pixels (${meta.fit})`],
    ["center crop", `${meta.image_size} × ${meta.image_size} pixels`],
    ["mean color", meta.mean.map((m) => m.toFixed(1)).join(", ")],
    ["runtime", meta.runtime],
    ["SHA-256 of the model", meta.sha256["model.onnx.gz"]],
  ];
  get("about").replaceChildren(...rows.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
  get("table").tBodies[0].replaceChildren(
    ...meta.layers.map((layer) => {
      const line = element("tr"), side = layer.field && Math.min(layer.field[0], meta.image_size);
      const cells = [layer.name, layer.kind, times(layer.output), layer.kernel, side ? `${side} × ${side}` : "", layer.parameters.toLocaleString("en")];
      line.append(...cells.map((cell) => element("td", cell)));
      return line;
    }),
  );
  const names = meta.classes.slice(0, 100).map(plain), more = meta.classes.length - names.length;
  get("classes").textContent = names.join(", ") + (more ? ` and ${more} more` : "");
}

// Events

get("choose").addEventListener("click", () => get("file").click());
get("file").addEventListener("change", (event) => {
  open(event.target.files[0]);
  event.target.value = ""; // so that the same file can be chosen again
});
get("occlude").addEventListener("click", showOcclusion);
get("layer").addEventListener("change", showLayer);
for (const id of ["channel", "row", "column"])
  get(id).addEventListener("input", (event) => {
    const value = Math.min(Math.max(Math.trunc(Number(event.target.value)), 0), Number(event.target.max));
    selected[id] = value;
    pinned = true;
    showUnit();
  });
for (const type of ["pointermove", "click"]) get("maps").addEventListener(type, point);
document.addEventListener("paste", (event) => {
  const files = [...((event.clipboardData && event.clipboardData.files) || [])];
  if (files.length) open(files[0]);
  else report("", "The clipboard has no image.");
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  get("drop").classList.add("over");
});
document.addEventListener("dragleave", () => get("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  get("drop").classList.remove("over");
  if (event.dataTransfer.files[0]) open(event.dataTransfer.files[0]);
  else report("", "This is not a file. URLs are not fetched.");
});

globalThis.alexnet = { fit, predict, arithmetic, occlude, state: () => ({ meta, images, outputs }) }; // for the console

load();
