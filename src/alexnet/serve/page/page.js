"use strict";
// The page's only script. It sends requests to its own server only; URLs are relative, so that any proxy prefix works.

const SLOW = 4000; // ms after which the page reports that it is still waiting
const TIMEOUT = 60000; // ms
const RETRY = 1000; // ms between requests while the model is loading
const LOADING = "The model is loading …";
const NEIGHBORS = 6;

const get = (id) => document.getElementById(id);
let capabilities = [];
let limits = {};
let key = "";
let requestNumber = 0; // a late response to an earlier request is not shown
let imageUrl = ""; // of the image on the page
let lastFile = null; // predicted again once a key is given

function element(name, text, cls) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (cls) node.className = cls;
  return node;
}

// Class names with spaces in place of underscores.
const plain = (name) => name.replaceAll("_", " ");

const percent = (p) =>
  p < 0.0005 ? "< 0.1 %" : p > 0.9995 && p < 1 ? "> 99.9 %" : `${(100 * p).toFixed(1)} %`;

function report(status, problem) {
  get("status").textContent = status || "";
  get("problem").textContent = problem || "";
}

// A status that keeps a problem that was reported meanwhile.
function setStatus(status) {
  get("status").textContent = status;
}

// The JSON of a response; an Error has a message of one sentence for the user.
async function request(path, body) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), TIMEOUT);
  try {
    const response = await fetch(path, { method: body ? "POST" : "GET", body, headers, signal: stop.signal });
    if (response.status === 401) {
      get("key-form").hidden = false;
      get("key").focus();
      throw new Error(key ? "This key is not valid." : "This server requires an API key.");
    }
    const json = await response.json().catch(() => null);
    if (response.ok && json) return json;
    throw new Error(errorMessage(response, json));
  } catch (error) {
    if (error.name === "AbortError") throw new Error("The server did not respond within a minute; try again later.");
    if (error instanceof TypeError) throw new Error("The server does not respond; is it still running?");
    throw error;
  } finally {
    clearTimeout(timer);
  }
}

function isLoading(response, json) {
  return response.status === 503 && json !== null && /^loading/.test(json.error);
}

function retry(status, action) {
  report(status);
  setTimeout(action, RETRY);
}

function errorMessage(response, json) {
  if (isLoading(response, json)) return LOADING;
  if (response.status === 503) {
    const seconds = response.headers.get("Retry-After");
    return `The server is busy; try again ${seconds ? `in ${seconds} s` : "later"}.`;
  }
  if (response.status === 413) return `This image is too large: at most ${limits.max_megabytes || 20} MB.`;
  const entry = json && json.predictions && json.predictions[0];
  const error = (entry && entry.error) || (json && json.error);
  return error ? `This cannot be used: ${error}.` : `Unexpected response of the server: status ${response.status}.`;
}

async function predict(file) {
  if (!file) return;
  const number = ++requestNumber;
  lastFile = file;
  get("result").hidden = true;
  if (file.size > (limits.max_megabytes || 20) * 1e6) {
    report("", `This image is too large: ${(file.size / 1e6).toFixed(1)} MB of at most ${limits.max_megabytes || 20} MB.`);
    return;
  }
  report("Predicting …");
  const slow = setTimeout(() => number === requestNumber && setStatus("Still waiting: the server is slow or busy …"), SLOW);
  const form = new FormData();
  form.append("file", file, file.name || "image");
  const parameters = new URLSearchParams({ top: 5 });
  const method = ["grad_cam", "gradient"].find((m) => capabilities.includes(`saliency=${m}`));
  if (method) parameters.set("saliency", method);
  if (capabilities.includes("neighbors")) parameters.set("neighbors", NEIGHBORS);
  try {
    const json = await request(`v1/predict?${parameters}`, form);
    if (number !== requestNumber) return;
    get("key-form").hidden = true;
    showImage(file);
    showPrediction(json.predictions[0]);
  } catch (error) {
    if (number !== requestNumber) return;
    if (error.message === LOADING) retry(LOADING, () => number === requestNumber && predict(file));
    else report("", error.message);
  } finally {
    clearTimeout(slow);
  }
}

function showImage(file) {
  if (imageUrl) URL.revokeObjectURL(imageUrl);
  imageUrl = URL.createObjectURL(file);
  get("image").src = imageUrl;
}

function showPrediction(prediction) {
  const list = get("predictions");
  list.replaceChildren(
    ...prediction.top_k.map(({ label, score }) => {
      const item = element("li");
      const text = element("div", undefined, "label");
      text.append(element("span", plain(label)), element("span", percent(score), "score"));
      const rail = element("div", undefined, "rail");
      const bar = element("div", undefined, "bar");
      bar.style.width = `${100 * score}%`;
      rail.append(bar);
      item.append(text, rail);
      return item;
    }),
  );
  const best = prediction.top_k[0];
  get("abstained").hidden = !prediction.abstained;
  get("abstained").textContent = prediction.abstained
    ? `Unknown. The best prediction has a score of ${percent(best.score)}, below the threshold of this server.`
    : "";
  showSaliency(prediction.saliency);
  showNeighbors(prediction.neighbors || []);
  get("result").hidden = false;
  setStatus(
    prediction.abstained
      ? "Unknown."
      : `Best prediction: ${plain(best.label)}, ${percent(best.score)}.`,
  );
}

function showSaliency(saliency) {
  const overlay = get("overlay");
  get("saliency-toggle").hidden = !saliency;
  overlay.hidden = !saliency || !get("saliency").checked;
  if (!saliency) return;
  overlay.src = saliency.image;
  const [left, top, width, height] = saliency.box_xywh_normalized.map((fraction) => `${100 * fraction}%`);
  Object.assign(overlay.style, { left, top, width, height });
}

function showNeighbors(neighbors) {
  get("neighbors-section").hidden = neighbors.length === 0;
  get("neighbors").replaceChildren(
    ...neighbors.map((neighbor) => {
      const item = element("li");
      const image = element("img");
      image.src = neighbor.image;
      image.alt = "";
      item.append(image, element("div", plain(neighbor.label)), element("div", `distance ${neighbor.distance.toPrecision(3)}`, "soft"));
      return item;
    }),
  );
}

// The model card

async function loadModel() {
  try {
    const model = await request("v1/model?reference_samples=false", null);
    capabilities = model.capabilities;
    limits = model.limits;
    const split = model.metrics.test ? "test" : "validation";
    const scores = model.metrics[split];
    get("model-summary").textContent = `${model.name}, ${model.classes.length} classes`;
    get("score-note").textContent = scores
      ? `Scores are the network's own estimates. Top-1 accuracy on ${scores.count} ${split} images: ${percent(scores.top1)}.`
      : "Scores are the network's own estimates.";
    showModel(model);
    report("");
    if (model.classes.length) loadFilters();
  } catch (error) {
    get("model-summary").textContent = "";
    if (error.message === LOADING) retry(LOADING, loadModel);
    else report("", error.message);
  }
}

function showModel(model) {
  const rows = [
    ["network", model.name],
    ["parameters", model.parameters && model.parameters.toLocaleString("en")],
    ["trained on", model.data && model.data.name],
    ["recipe", model.recipe],
    ["stored image", `${model.preprocessing.stored_size} × ${model.preprocessing.stored_size} pixels (${model.preprocessing.fit})`],
    ["confidence threshold", model.confidence_threshold !== null && model.confidence_threshold !== undefined && percent(model.confidence_threshold)],
    ["SHA-256", model.model_sha256],
  ];
  get("about").replaceChildren(
    ...rows.filter(([, value]) => value).flatMap(([name, value]) => [element("dt", name), element("dd", value)]),
  );
  const scores = Object.entries(model.metrics);
  const top5 = model.classes.length > 5; // else top-5 is always right
  get("scores").hidden = scores.length === 0;
  get("top5").hidden = !top5;
  get("scores").tBodies[0].replaceChildren(
    ...scores.map(([split, score]) => {
      const row = element("tr");
      const cells = [split, score.count, percent(score.top1), ...(top5 ? [percent(score.top5)] : [])];
      row.append(...cells.map((cell) => element("td", String(cell))));
      return row;
    }),
  );
  const MAX_NAMES = 100;
  const names = model.classes.slice(0, MAX_NAMES).map((name) => plain(name));
  get("classes").textContent = names.join(", ") + (model.classes.length > MAX_NAMES ? ` and ${model.classes.length - MAX_NAMES} more` : "");
}

async function loadFilters() {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const response = await fetch("v1/filters.png", { headers }).catch(() => null);
  if (!response || !response.ok) return;
  get("filters").src = URL.createObjectURL(await response.blob());
  get("filters-figure").hidden = false;
}

// Events

get("choose").addEventListener("click", () => get("file").click());
get("take-photo").addEventListener("click", () => get("camera").click());
for (const id of ["file", "camera"]) {
  get(id).addEventListener("change", (event) => {
    predict(event.target.files[0]);
    event.target.value = ""; // so that the same file can be chosen again
  });
}
get("saliency").addEventListener("change", () => (get("overlay").hidden = !get("saliency").checked));

document.addEventListener("paste", (event) => {
  const files = [...((event.clipboardData && event.clipboardData.files) || [])];
  if (files.length) predict(files[0]);
  else if (event.target.id !== "key") report("", "The clipboard has no image.");
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  get("drop").classList.add("over");
});
document.addEventListener("dragleave", () => get("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  get("drop").classList.remove("over");
  const file = event.dataTransfer.files[0];
  if (file) predict(file);
  else report("", "This is not a file. URLs are not fetched.");
});
get("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  key = get("key").value.trim();
  get("key-form").hidden = true;
  await loadModel();
  if (capabilities.length && lastFile) predict(lastFile);
});

loadModel();
