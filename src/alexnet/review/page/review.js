"use strict";
// The script of the review page. It shows one case at a time and sends each decision to its own server at once.

const MAX_CHOICES = 60; // classes listed at a time
const SMALL = 160; // pixels: smaller images are enlarged without smoothing

const get = (id) => document.getElementById(id);
let data = { topics: [], images: [], classes: [] };
let topicIndex = 0;
let caseIndex = 0;
let selected = 0; // image of the case
let saving = Promise.resolve(); // changes are sent one after the other
const history = []; // lists of changes that undo what was done, the latest last

function element(name, text, cls) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (cls) node.className = cls;
  return node;
}

const topic = () => data.topics[topicIndex];
const current = () => topic().cases[caseIndex];
const imageIndex = () => current().images[selected];
const image = () => data.images[imageIndex()];
const isLabeled = (one) => one.split !== "";
const isDecided = (one) => one.images.every((index) => data.images[index].decision);
const percent = (p) => `${(100 * p).toFixed(1)} %`;

function describe(decision) {
  if (!decision) return "";
  return { keep: "Keep", exclude: "Exclude", relabel: `Relabel: ${decision.label}`, add: `Label: ${decision.label}` }[decision.action];
}

// Showing

function show() {
  const hasTopics = data.topics.length > 0;
  get("empty").hidden = hasTopics;
  get("case").hidden = !hasTopics;
  if (!hasTopics) return;
  showTopics();
  const one = topic();
  get("severity").textContent = `${one.severity} · ${one.name}`;
  get("severity").className = one.severity;
  get("topic-title").textContent = one.title;
  get("todo").textContent = one.todo;
  get("position").textContent = `${caseIndex + 1} of ${one.cases.length}`;
  get("why").textContent = current().why + (current().hidden ? ` (${current().hidden} more images are not shown)` : "");
  showImages();
  showActions();
  get("undo").disabled = history.length === 0;
  const open = exclusions(one.cases).length;
  get("exclude-all").hidden = open < 2;
  get("exclude-all").textContent = `Exclude all ${open} that are suggested`;
  closeChooser();
}

function showTopics() {
  get("topics").replaceChildren(
    ...data.topics.map((one, index) => {
      const item = element("li");
      const button = element("button", undefined, one.severity);
      button.type = "button";
      button.append(element("span", one.name), element("span", `${one.cases.filter(isDecided).length} / ${one.cases.length}`, "count"));
      button.setAttribute("aria-current", String(index === topicIndex));
      button.addEventListener("click", () => goTo(index, Math.max(0, one.cases.findIndex((each) => !isDecided(each)))));
      item.append(button);
      return item;
    }),
  );
}

function showImages() {
  const list = get("images");
  const count = current().images.length;
  list.className = count === 1 ? "single" : count > 3 ? "many" : "";
  list.replaceChildren(...current().images.map((_, position) => imageItem(position)));
}

function imageItem(position) {
  const index = current().images[position];
  const one = data.images[index];
  const button = element("button", undefined, "image");
  button.type = "button";
  button.setAttribute("aria-pressed", String(position === selected));
  button.addEventListener("click", () => {
    selected = position;
    show();
    focusImage();
  });
  const frame = element("span", undefined, "frame");
  const img = element("img");
  img.alt = one.origin;
  img.addEventListener("load", () => img.classList.toggle("small", Math.max(img.naturalWidth, img.naturalHeight) < SMALL));
  img.addEventListener("error", () => frame.replaceChildren(element("span", "This image cannot be shown.", "soft")));
  img.src = `image/${index}`;
  frame.append(img);
  const caption = element("span", undefined, "caption");
  const label = isLabeled(one) ? `${one.label} · ${one.split}` : "no label";
  const decision = element("span", describe(one.decision), `decision ${one.decision ? one.decision.action : ""}`);
  const suggested = current().suggested[position];
  if (!one.decision && suggested) {
    decision.textContent = `Suggested: ${describe(suggested)}`;
    decision.className = "decision soft";
  }
  caption.append(element("strong", label), element("br"), element("span", one.origin, "soft"), decision);
  button.append(frame, caption);
  const item = element("li");
  item.append(button);
  return item;
}

function actionButton(key, text, action, cls) {
  const button = element("button", undefined, cls);
  button.type = "button";
  if (key) button.append(element("kbd", key), ` ${text}`);
  else button.textContent = text;
  button.addEventListener("click", action);
  return button;
}

function showActions() {
  const suggested = current().suggested[selected];
  const buttons = [];
  if (suggested) buttons.push(actionButton("Enter", describe(suggested), accept, "main"));
  if (isLabeled(image())) {
    buttons.push(actionButton("K", "Keep", () => decide({ action: "keep", label: "" })));
    buttons.push(actionButton("R", "Relabel", openChooser));
    buttons.push(actionButton("X", "Exclude", () => decide({ action: "exclude", label: "" })));
  } else {
    current().scores.forEach(({ label, score }, position) => {
      buttons.push(actionButton(String(position + 1), `${label} ${percent(score)}`, () => decide({ action: "add", label })));
    });
    buttons.push(actionButton("R", "Other class", openChooser));
  }
  if (image().decision) buttons.push(actionButton("Backspace", "Remove the decision", () => decide(null)));
  get("actions").replaceChildren(...buttons);
}

// The chooser of a class

function openChooser() {
  get("chooser").hidden = false;
  get("filter").value = "";
  showChoices();
  get("filter").focus();
}

function closeChooser() {
  get("chooser").hidden = true;
}

function choices() {
  const text = get("filter").value.trim().toLowerCase();
  const fits = data.classes.filter((name) => name !== image().label && name.toLowerCase().includes(text));
  const first = (name) => (name.toLowerCase().startsWith(text) ? 0 : 1);
  return fits.sort((a, b) => first(a) - first(b)).slice(0, MAX_CHOICES);
}

function showChoices() {
  get("choices").replaceChildren(
    ...choices().map((name) => {
      const item = element("li");
      item.append(actionButton("", name, () => choose(name)));
      return item;
    }),
  );
}

function choose(name) {
  decide({ action: isLabeled(image()) ? "relabel" : "add", label: name });
}

// Deciding

// The changes that accept every suggestion to exclude an image without a decision. Labels need a look at each image.
function exclusions(cases) {
  const changes = new Map();
  for (const one of cases) {
    one.images.forEach((index, position) => {
      const suggested = one.suggested[position];
      if (suggested && suggested.action === "exclude" && !data.images[index].decision && !changes.has(index)) changes.set(index, { image: index, ...suggested });
    });
  }
  return [...changes.values()];
}

function accept() {
  const suggested = current().suggested[selected];
  if (suggested) decide(suggested);
}

async function decide(decision) {
  const text = decision ? describe(decision) : "Decision removed";
  const change = decision ? { image: imageIndex(), ...decision } : { image: imageIndex(), action: null };
  const place = [topicIndex, caseIndex, selected];
  closeChooser();
  if (await save([change], place, `${text}: ${image().origin}`)) {
    if (decision) advance();
    show();
    focusImage();
  }
}

function save(changes, place, message) {
  saving = saving.then(async () => {
    const before = changes.map(({ image: index }) => {
      const old = data.images[index].decision;
      return old ? { image: index, ...old } : { image: index, action: null };
    });
    try {
      await post(changes);
    } catch (error) {
      get("problem").textContent = error.message;
      return false;
    }
    get("problem").textContent = "";
    for (const { image: index, action, label } of changes) {
      data.images[index].decision = action ? { action, label: label || "" } : null;
    }
    if (place) history.push({ changes: before, place });
    get("status").textContent = message;
    return true;
  });
  return saving;
}

async function post(changes) {
  let response;
  try {
    response = await fetch("decisions", { method: "POST", body: JSON.stringify(changes) });
  } catch {
    throw new Error("Not saved: the server does not respond. Is alexnet review still running?");
  }
  if (response.ok) return;
  const json = await response.json().catch(() => null);
  throw new Error(`Not saved: ${json ? json.error : `status ${response.status}`}.`);
}

async function undo() {
  const last = history.pop();
  if (!last) return;
  if (await save(last.changes, null, "Undone.")) [topicIndex, caseIndex, selected] = last.place;
  else history.push(last);
  show();
  focusImage();
}

async function excludeAll() {
  const changes = exclusions(topic().cases);
  await save(changes, [topicIndex, caseIndex, selected], `${changes.length} images excluded.`);
  show();
}

// Moving

// The next image of the case without a decision, else the next case.
function advance() {
  const images = current().images;
  for (let step = 1; step < images.length; step++) {
    const position = (selected + step) % images.length;
    if (!data.images[images[position]].decision) {
      selected = position;
      return;
    }
  }
  move(1);
}

function move(step) {
  const last = topic().cases.length - 1;
  if (caseIndex + step >= 0 && caseIndex + step <= last) goTo(topicIndex, caseIndex + step);
  else if (step > 0 && topicIndex + 1 < data.topics.length) goTo(topicIndex + 1, 0);
  else if (step < 0 && topicIndex > 0) goTo(topicIndex - 1, data.topics[topicIndex - 1].cases.length - 1);
}

function goTo(toTopic, toCase) {
  [topicIndex, caseIndex] = [toTopic, toCase];
  const isOpen = (index) => !data.images[index].decision;
  const suggested = current().images.findIndex((index, position) => isOpen(index) && current().suggested[position]);
  selected = suggested >= 0 ? suggested : Math.max(0, current().images.findIndex(isOpen));
  show();
  preload();
}

function preload() {
  const next = topic().cases[caseIndex + 1];
  for (const index of next ? next.images : []) new Image().src = `image/${index}`;
}

function select(step) {
  const count = current().images.length;
  selected = (selected + step + count) % count;
  show();
  focusImage();
}

function focusImage() {
  const button = get("images").children[selected];
  if (button) button.firstChild.focus({ preventScroll: true });
}

const KEYS = {
  Enter: accept,
  k: () => isLabeled(image()) && decide({ action: "keep", label: "" }),
  r: openChooser,
  x: () => isLabeled(image()) && decide({ action: "exclude", label: "" }),
  Backspace: () => image().decision && decide(null),
  u: undo,
  ArrowLeft: () => move(-1),
  ArrowRight: () => move(1),
  ArrowUp: () => select(-1),
  ArrowDown: () => select(1),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !data.topics.length) return;
  if (event.key === "Escape") {
    closeChooser();
    focusImage();
    return;
  }
  const inField = event.target.id === "filter";
  const onButton = event.target.tagName === "BUTTON" && !event.target.classList.contains("image");
  if (inField || (event.key === "Enter" && (onButton || event.target.tagName === "SUMMARY"))) return;
  const score = isLabeled(image()) ? undefined : current().scores[Number(event.key) - 1];
  if (score) {
    decide({ action: "add", label: score.label });
    return;
  }
  const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

get("previous").addEventListener("click", () => move(-1));
get("next").addEventListener("click", () => move(1));
get("undo").addEventListener("click", undo);
get("exclude-all").addEventListener("click", excludeAll);
get("filter").addEventListener("input", showChoices);
get("chooser").addEventListener("submit", (event) => {
  event.preventDefault();
  const [first] = choices();
  if (first) choose(first);
});

async function start() {
  try {
    data = await (await fetch("data.json")).json();
  } catch {
    get("problem").textContent = "The server does not respond. Is alexnet review still running?";
    return;
  }
  document.title = `Review of ${data.name}`;
  get("title").textContent = `Review of ${data.name}`;
  get("file").textContent = `Decisions are saved at once in ${data.file}. No image is moved or changed.`;
  show();
  if (data.topics.length) goTo(0, 0);
}

start();
