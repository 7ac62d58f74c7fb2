"use strict";
// The page: it takes a picture, has worker.js explain it, and shows what comes back.
// Labels and the names of files are set as text, never as HTML.

const LARGEST_FILE = 100e6; // bytes
const LARGEST_PICTURE = 16e6; // pixels: a larger canvas fails on some phones
const SHOWN_ANSWERS = 5;
const MOST_LIKELY = -1;

const $ = (id) => document.getElementById(id);
let explainer; // what explainer.json says
let target = MOST_LIKELY; // the class to explain
let camera = null; // the camera's <video>, while it runs

// The worker answers in the order in which it is asked.

let worker;
const questions = [];

function startWorker() {
  worker = new Worker("worker.js", { type: "module" });
  worker.onmessage = ({ data: answer }) => {
    if (answer.progress) return showProgress(answer.progress);
    const { resolve, reject } = questions.shift();
    if (answer.error) reject(new Error(answer.error));
    else resolve(answer);
  };
  worker.onerror = () => {
    const error = new Error("worker.js can't be loaded: reload the page to try again.");
    for (const { reject } of questions.splice(0)) reject(error);
  };
}

function ask(question, transfer = []) {
  worker.postMessage(question, transfer);
  return new Promise((resolve, reject) => questions.push({ resolve, reject }));
}

// The beginning.

async function load() {
  if (location.protocol === "file:") {
    throw new Error("A browser doesn't let a page that is opened as a file load a model: serve its folder.");
  }
  if (typeof WebAssembly === "undefined") throw new Error("This browser lacks WebAssembly, so it can't run the model.");
  const response = await fetch("explainer.json");
  if (!response.ok) throw new Error(`explainer.json can't be loaded (HTTP ${response.status}): write the page again.`);
  explainer = await response.json();
  $("model").textContent = document.title = explainer.name;
  showRamp();
  startWorker();
  const { threads } = await ask({ load: explainer });
  tell("");
  addFact(`${explainer.method}, ${megabytes(explainer.bytes)}`);
  addFact(threads > 1 ? `${threads} threads` : "1 thread");
}

const loaded = load();
// Where the browser keeps no copy, the page works all the same.
loaded.then(() => keep().catch(() => {}), (error) => fail(error.message));

/** Keep a copy of the page for when there is no network, and offer a newer one when it is here. */
async function keep() {
  if (!navigator.serviceWorker) return;
  const registration = await navigator.serviceWorker.register("service-worker.js");
  const offer = () => {
    $("update").hidden = !(registration.waiting && navigator.serviceWorker.controller);
  };
  const follow = () => registration.installing?.addEventListener("statechange", offer);
  offer();
  follow();
  registration.onupdatefound = follow;
  navigator.serviceWorker.oncontrollerchange = () => location.reload();
  $("reload").onclick = () => registration.waiting.postMessage("take over");
  await navigator.serviceWorker.ready;
  addFact("works offline");
}

// One explanation at a time; of those wanted meanwhile, the last.

// A picture: its name, width, height and pixels, whether it was scaled down, and whether it is a camera's frame.

let wanted = null; // {picture} for a new one, {} for another class of the same
let asked; // the picture that the worker has
let explaining = false;

async function explain(request) {
  wanted = { ...wanted, ...request };
  if (explaining) return;
  explaining = true;
  let patience;
  try {
    await loaded;
    patience = setTimeout(() => camera || tell("Explaining …"), 500);
    while (wanted) {
      const { picture } = wanted;
      wanted = null;
      asked = picture ?? asked;
      const start = performance.now();
      const answer = await askAbout(picture);
      if (!wanted) show(asked, answer, performance.now() - start);
    }
  } catch (error) {
    wanted = null;
    stopCamera();
    fail(error.message);
  }
  clearTimeout(patience);
  explaining = false;
  if (camera) requestAnimationFrame(explainFrame);
}

function askAbout(picture) {
  const pixels = picture?.pixels;
  // A frame's pixels are shown with its answer, so the worker gets a copy.
  return ask({ explain: target, pixels }, pixels && !picture.isFrame ? [pixels.data.buffer] : []);
}

function choose(index) {
  target = index;
  clearError();
  explain({});
}

// Pictures, from files and from the camera.

let opened = 0; // how many files were chosen and cameras started: the last counts

async function openFile(file) {
  const number = ++opened;
  stopCamera();
  clearError();
  if (file.size > LARGEST_FILE) {
    return fail(`${file.name} is too large: it has ${megabytes(file.size)}, and this page takes 100 MB.`);
  }
  let bitmap;
  try {
    // As onnxplain reads pictures: turned as EXIF says, with the colours that stand in the file.
    const options = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" };
    bitmap = await createImageBitmap(file, options);
  } catch {
    return fail(`${file.name} is not a picture that this browser can read.`);
  }
  if (number !== opened) return;
  const scale = Math.min(1, Math.sqrt(LARGEST_PICTURE / (bitmap.width * bitmap.height)));
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.floor(side * scale)));
  const pixels = draw($("photo"), bitmap, width, height);
  bitmap.close();
  const picture = { name: file.name, width, height, pixels, scaled: scale < 1 };
  $("heat").width = 0;
  $("answers").ariaBusy = "true";
  reveal(picture);
  target = MOST_LIKELY;
  explain({ picture });
}

async function startCamera() {
  clearError();
  if (!navigator.mediaDevices) return fail("Browsers let pages on https or localhost alone use the camera.");
  const number = ++opened;
  $("camera").disabled = true;
  const video = document.createElement("video");
  try {
    video.playsInline = video.muted = true; // or phones show it full screen
    const size = { width: { ideal: 640 }, height: { ideal: 480 } };
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", ...size } });
    await video.play();
  } catch (error) {
    stopTracks(video);
    if (number !== opened) return;
    const refused = error.name === "NotAllowedError";
    return fail(refused ? "This page may not use the camera: the browser's settings say so." : `The camera can't be used: ${error.message}`);
  } finally {
    $("camera").disabled = false;
  }
  if (number !== opened) return stopTracks(video); // a file was chosen meanwhile
  camera = video;
  $("camera").textContent = "Stop the camera";
  $("status").ariaLive = "off"; // or screen readers read every frame's answer
  target = MOST_LIKELY;
  explainFrame();
}

function stopCamera() {
  if (!camera) return;
  stopTracks(camera);
  camera = null;
  $("camera").textContent = "Use the camera";
  $("status").ariaLive = "polite";
}

function stopTracks(video) {
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
}

const frame = document.createElement("canvas");

function explainFrame() {
  if (!camera) return;
  const { videoWidth: width, videoHeight: height } = camera;
  const pixels = draw(frame, camera, width, height);
  explain({ picture: { name: "the camera", width, height, pixels, isFrame: true } });
}

/** Draw a picture, transparency laid over white, and return its pixels. */
function draw(canvas, picture, width, height) {
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}

// What is shown, and told.

function tell(words) {
  $("status").textContent = words;
}

/** Say what went wrong; it stays until the reader does something else. */
function fail(words) {
  $("status").textContent = "";
  $("error").textContent = words;
}

function clearError() {
  $("error").textContent = "";
}

function showProgress(share) {
  tell(`Loading the model: ${Math.floor(100 * share)}% of ${megabytes(explainer.bytes)}`);
}

function reveal({ name, width, height }) {
  $("empty").hidden = true;
  $("picture").hidden = false;
  $("picture").style.setProperty("--ratio", width / height);
  $("photo").ariaLabel = name;
}

function show(picture, { index, logits, heatmap, colours }, milliseconds) {
  const { name, width, height, pixels, scaled, isFrame } = picture;
  if (isFrame) {
    Object.assign($("photo"), { width, height }).getContext("2d").putImageData(pixels, 0, 0);
    reveal(picture);
  }
  Object.assign($("heat"), { width, height });
  $("heat").getContext("2d").putImageData(new ImageData(colours, width, height), 0, 0);
  $("photo").ariaLabel = `What speaks for ${label(index)} in ${name}`;
  showAnswers(index, logits);
  const note = scaled ? ` The picture was scaled down to ${width} × ${height}.` : "";
  tell(`${label(index)}, ${score(logits, index)}. Explained in ${Math.round(milliseconds)} ms.${note}`);
  document.dispatchEvent(new CustomEvent("explained", { detail: { index, logits, heatmap, width, height } }));
}

function showAnswers(index, logits) {
  const indices = Array.from(logits.keys());
  const answers = indices.slice().sort((a, b) => logits[b] - logits[a]).slice(0, SHOWN_ANSWERS);
  if (!answers.includes(index)) answers.push(index);
  const hadFocus = $("classes").contains(document.activeElement);
  $("classes").replaceChildren(...answers.map((one) => answerRow(one, logits, one === index)));
  if (hadFocus) $("classes").querySelector(":checked").focus();
  if ($("target").length === 1) $("target").append(...indices.map((one) => new Option(label(one), one)));
  $("target").value = target;
  $("answers").ariaBusy = "false";
  $("answers").hidden = false;
}

function answerRow(index, logits, checked) {
  const row = create("label", { className: "answer" });
  row.append(
    create("input", { type: "radio", name: "class", value: index, checked }),
    create("span", { className: "name", textContent: label(index) }),
    create("span", { className: "score", textContent: score(logits, index) }),
  );
  if (explainer.activation !== "none") {
    const bar = create("span", { className: "bar" });
    bar.style.width = `${100 * probability(logits, index)}%`;
    row.append(bar);
  }
  return row;
}

function create(tag, properties) {
  return Object.assign(document.createElement(tag), properties);
}

function label(index) {
  return explainer.labels?.[index] ?? `class ${index}`;
}

function score(logits, index) {
  if (explainer.activation === "none") return logits[index].toFixed(2);
  return `${(100 * probability(logits, index)).toFixed(1)}%`;
}

function probability(logits, index) {
  if (explainer.activation === "sigmoid") return 1 / (1 + Math.exp(-logits[index]));
  const largest = logits.reduce((one, other) => Math.max(one, other));
  return Math.exp(logits[index] - largest) / logits.reduce((sum, one) => sum + Math.exp(one - largest), 0);
}

function showRamp() {
  const context = $("ramp").getContext("2d");
  for (let x = 0; x < 128; x++) {
    context.fillStyle = `rgb(${explainer.colours.slice(6 * x, 6 * x + 3).join(" ")} / ${x / 127})`;
    context.fillRect(x, 0, 1, 1);
  }
}

function addFact(text) {
  $("facts").append(create("li", { textContent: text }));
}

function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

// What the reader does.

$("classes").onchange = ({ target: radio }) => choose(Number(radio.value));
$("target").onchange = () => choose(Number($("target").value));
$("opacity").oninput = () => ($("heat").style.opacity = $("opacity").value / 100);
$("camera").onclick = () => (camera ? stopCamera() : startCamera());
$("file").onchange = () => {
  const [file] = $("file").files;
  if (file) openFile(file);
  $("file").value = ""; // so that the same file can be chosen again
};
document.ondragover = (event) => {
  event.preventDefault();
  $("stage").classList.add("over");
};
document.ondragleave = (event) => {
  if (!event.relatedTarget) $("stage").classList.remove("over"); // it left the window
};
document.ondrop = (event) => {
  event.preventDefault();
  $("stage").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) openFile(file);
  else fail("What was dropped is not a file: drop a picture from a folder.");
};
