"use strict";
// The page's only script. It asks the server that sent it and nobody else; addresses are relative, for proxies.

const SLOW = 4000; // ms after which the page says that it is still waiting
const LATE = 60000; // ms after which it gives up
const AGAIN = 1000; // ms until a server that loads its model is asked again
const LOADING = "The model is loading …";
const FACES = 6; // neighbors that are shown

const by = (id) => document.getElementById(id);
let capabilities = [];
let limits = {};
let key = "";
let asked = 0; // numbers the questions: a late answer to an earlier one is not shown
let address = ""; // of the image that is shown
let last = null; // the image that a key may be missing for

function element(name, text, cls) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (cls) made.className = cls;
  return made;
}

const percent = (p) =>
  p < 0.0005 ? "< 0.1 %" : p > 0.9995 && p < 1 ? "> 99.9 %" : `${(100 * p).toFixed(1)} %`;

function say(status, problem) {
  by("status").textContent = status || "";
  by("problem").textContent = problem || "";
}

// What an answer has to tell; a problem that came up while it was waited for stays.
function tell(status) {
  by("status").textContent = status;
}

// Asks; the answer's JSON, or an Error whose message is one sentence for a person.
async function ask(path, body, seconds) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), seconds);
  try {
    const answer = await fetch(path, { method: body ? "POST" : "GET", body, headers, signal: stop.signal });
    if (answer.status === 401) {
      by("key-form").hidden = false;
      by("key").focus();
      throw new Error(key ? "The server does not know this key." : "This server wants a key.");
    }
    const found = await answer.json().catch(() => null);
    if (answer.ok && found) return found;
    throw new Error(sentence(answer, found));
  } catch (error) {
    if (error.name === "AbortError") throw new Error("The server did not answer within a minute; try again later.");
    if (error instanceof TypeError) throw new Error("The server does not answer; is it still running?");
    throw error;
  } finally {
    clearTimeout(timer);
  }
}

// While the model is opened and verified, a question waits for it: it is asked again, until it is answered.
function loads(answer, found) {
  return answer.status === 503 && found !== null && /^loading/.test(found.error);
}

function wait(status, again) {
  say(status);
  setTimeout(again, AGAIN);
}

function sentence(answer, found) {
  if (loads(answer, found)) return LOADING;
  if (answer.status === 503) {
    const again = answer.headers.get("Retry-After");
    return `The server is busy; try again ${again ? `in ${again} s` : "later"}.`;
  }
  if (answer.status === 413) return `This image is too large: at most ${limits.max_megabytes || 20} MB.`;
  const one = found && found.predictions && found.predictions[0];
  const why = (one && one.error) || (found && found.error);
  return why ? `This can not be used: ${why}.` : `The server answered ${answer.status}, which is not expected.`;
}

async function show(file) {
  if (!file) return;
  const number = ++asked;
  last = file;
  by("result").hidden = true;
  if (file.size > (limits.max_megabytes || 20) * 1e6) {
    say("", `This image is too large: ${(file.size / 1e6).toFixed(1)} MB of at most ${limits.max_megabytes || 20} MB.`);
    return;
  }
  say("Looking at it …");
  const slow = setTimeout(() => number === asked && tell("Still waiting: the server is slow or busy …"), SLOW);
  const form = new FormData();
  form.append("file", file, file.name || "image");
  const words = new URLSearchParams({ top: 5 });
  const method = ["grad_cam", "gradient"].find((m) => capabilities.includes(`saliency=${m}`));
  if (method) words.set("saliency", method);
  if (capabilities.includes("neighbors")) words.set("neighbors", FACES);
  try {
    const found = await ask(`v1/predict?${words}`, form, LATE);
    if (number !== asked) return;
    by("key-form").hidden = true;
    image(file);
    answer(found.predictions[0]);
  } catch (error) {
    if (number !== asked) return;
    if (error.message === LOADING) wait(LOADING, () => number === asked && show(file));
    else say("", error.message);
  } finally {
    clearTimeout(slow);
  }
}

function image(file) {
  if (address) URL.revokeObjectURL(address);
  address = URL.createObjectURL(file);
  by("image").src = address;
}

function answer(found) {
  const list = by("predictions");
  list.replaceChildren(
    ...found.top_k.map(({ label: name, score: probability }) => {
      const item = element("li");
      const words = element("div", undefined, "words");
      words.append(element("span", name.replaceAll("_", " ")), element("span", percent(probability), "share"));
      const rail = element("div", undefined, "rail");
      const bar = element("div", undefined, "bar");
      bar.style.width = `${100 * probability}%`;
      rail.append(bar);
      item.append(words, rail);
      return item;
    }),
  );
  const best = found.top_k[0];
  by("unknown").hidden = !found.abstained;
  by("unknown").textContent = found.abstained
    ? `Unknown. The best prediction has only ${percent(best.score)}, too little to be believed.`
    : "";
  saliency(found.saliency);
  neighbors(found.neighbors || []);
  by("result").hidden = false;
  tell(
    found.abstained
      ? "Unknown."
      : `Best prediction: ${best.label.replaceAll("_", " ")}, ${percent(best.score)}.`,
  );
}

function saliency(found) {
  const overlay = by("overlay");
  by("look").hidden = !found;
  overlay.hidden = !found || !by("saliency").checked;
  if (!found) return;
  overlay.src = found.image;
  const [left, top, width, height] = found.box_xywh_normalized.map((share) => `${100 * share}%`);
  Object.assign(overlay.style, { left, top, width, height });
}

function neighbors(found) {
  by("alike").hidden = found.length === 0;
  by("neighbors").replaceChildren(
    ...found.map((one) => {
      const item = element("li");
      const image = element("img");
      image.src = one.image;
      image.alt = "";
      const words = `${one.label.replaceAll("_", " ")}`;
      item.append(image, element("div", words), element("div", `distance ${one.distance.toPrecision(3)}`, "soft"));
      return item;
    }),
  );
}

// The card

async function card() {
  try {
    const about = await ask("v1/model?reference_samples=false", null, LATE);
    capabilities = about.capabilities;
    limits = about.limits;
    const test = about.metrics.test || about.metrics.validation;
    by("who").textContent = `${about.name} tells ${about.classes.length} classes apart.`;
    by("honest").textContent = test
      ? `Each share is the network's own estimate. Of ${test.count} images that it had not seen, its first prediction was right for ${percent(test.top1)}.`
      : "Each share is the network's own estimate.";
    describe(about);
    say("");
    if (about.classes.length) filters();
  } catch (error) {
    by("who").textContent = "";
    if (error.message === LOADING) wait(LOADING, card);
    else say("", error.message);
  }
}

function describe(about) {
  const rows = [
    ["network", about.name],
    ["parameters", about.parameters && about.parameters.toLocaleString("en")],
    ["trained on", about.data && about.data.name],
    ["recipe", about.recipe],
    ["images become", `${about.preprocessing.stored_size} × ${about.preprocessing.stored_size} pixels (${about.preprocessing.fit})`],
    ["unknown below", about.confidence_threshold !== null && about.confidence_threshold !== undefined && percent(about.confidence_threshold)],
    ["SHA-256", about.model_sha256],
  ];
  by("about").replaceChildren(
    ...rows.filter(([, value]) => value).flatMap(([name, value]) => [element("dt", name), element("dd", value)]),
  );
  const scores = Object.entries(about.metrics);
  const top5 = about.classes.length > 5; // else the first five are all of them
  by("scores").hidden = scores.length === 0;
  by("top5").hidden = !top5;
  by("scores").tBodies[0].replaceChildren(
    ...scores.map(([split, score]) => {
      const row = element("tr");
      const cells = [split, score.count, percent(score.top1), ...(top5 ? [percent(score.top5)] : [])];
      row.append(...cells.map((cell) => element("td", String(cell))));
      return row;
    }),
  );
  const most = 100;
  const names = about.classes.slice(0, most).map((name) => name.replaceAll("_", " "));
  by("classes").textContent = names.join(", ") + (about.classes.length > most ? ` and ${about.classes.length - most} more` : "");
}

async function filters() {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const answer = await fetch("v1/filters.png", { headers }).catch(() => null);
  if (!answer || !answer.ok) return;
  by("filters").src = URL.createObjectURL(await answer.blob());
  by("first").hidden = false;
}

// What a person does

by("choose").addEventListener("click", () => by("file").click());
by("photograph").addEventListener("click", () => by("camera").click());
for (const id of ["file", "camera"]) {
  by(id).addEventListener("change", (event) => {
    show(event.target.files[0]);
    event.target.value = ""; // the same file may be chosen again
  });
}
by("saliency").addEventListener("change", () => (by("overlay").hidden = !by("saliency").checked));

document.addEventListener("paste", (event) => {
  const files = [...((event.clipboardData && event.clipboardData.files) || [])];
  if (files.length) show(files[0]);
  else if (event.target.id !== "key") say("", "There is no image in what was pasted.");
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  by("drop").classList.add("over");
});
document.addEventListener("dragleave", () => by("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  by("drop").classList.remove("over");
  const file = event.dataTransfer.files[0];
  if (file) show(file);
  else say("", "What was dropped is no file; addresses are not fetched.");
});
by("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  key = by("key").value.trim();
  by("key-form").hidden = true;
  await card();
  if (capabilities.length && last) show(last);
});

card();
