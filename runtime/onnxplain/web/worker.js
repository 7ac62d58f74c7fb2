// Runs the explainer, so that the page doesn't freeze.
//
// Asked {load: what explainer.json says}, it answers {threads}, after some {progress}. Asked {explain: class, pixels},
// it answers {index, logits, heatmap, colours}; without pixels, for the same picture again. Or it answers {error}.

let ort, session, image, ramp;

onmessage = async ({ data: question }) => {
  try {
    const [answer, transfer] = question.load ? await load(question.load) : await explain(question);
    postMessage(answer, transfer);
  } catch (error) {
    postMessage({ error: error.message });
  }
};

async function load({ bytes, colours }) {
  ramp = colours;
  await importRuntime();
  const file = await fetchModel("explainer.onnx", bytes);
  try {
    session = await ort.InferenceSession.create(file);
  } catch (error) {
    throw new Error(`This browser can't run the model: ${firstLine(error)}`);
  }
  return [{ threads: ort.env.wasm.numThreads }, []];
}

async function importRuntime() {
  try {
    ort = await import("./ort/ort.wasm.bundle.min.js");
  } catch {
    throw new Error("onnxruntime-web can't be loaded from the folder ort: write the page again.");
  }
}

async function fetchModel(name, length) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`The model ${name} can't be loaded (HTTP ${response.status}): write the page again.`);
  const model = new Uint8Array(length);
  const reader = response.body.getReader();
  let read = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (read + part.value.length <= length) model.set(part.value, read);
    read += part.value.length;
    postMessage({ progress: read / length });
  }
  if (read !== length) throw new Error(`The model ${name} is not the one that this page was written for: write it again.`);
  return model;
}

async function explain({ explain: target, pixels }) {
  if (pixels) image = new ort.Tensor("uint8", withoutAlpha(pixels.data), [1, pixels.height, pixels.width, 3]);
  const class_index = new ort.Tensor("int64", [BigInt(target)], [1, 1]);
  let outputs;
  try {
    outputs = await session.run({ image, class_index }, ["logits", "explained_class", "heatmap"]);
  } catch (error) {
    throw new Error(`The model failed (${firstLine(error)}): reload the page to try again.`);
  }
  const [logits, heatmap] = [outputs.logits.data, outputs.heatmap.data];
  if (!areFinite(logits) || !areFinite(heatmap)) {
    throw new Error("The model's outputs are NaN or infinite, so there is nothing to explain: check its weights and the picture.");
  }
  const colours = coloured(heatmap);
  const answer = { index: Number(outputs.explained_class.data[0]), logits, heatmap, colours };
  return [answer, [heatmap.buffer, colours.buffer]];
}

function withoutAlpha(rgba) {
  const rgb = new Uint8Array((rgba.length / 4) * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    rgb[to++] = rgba[from];
    rgb[to++] = rgba[from + 1];
    rgb[to++] = rgba[from + 2];
  }
  return rgb;
}

function areFinite(values) {
  for (let at = 0; at < values.length; at++) if (!Number.isFinite(values[at])) return false;
  return true;
}

/** Return heat as RGBA: the hotter, the less shows through. */
function coloured(heatmap) {
  const rgba = new Uint8ClampedArray(4 * heatmap.length);
  for (let pixel = 0; pixel < heatmap.length; pixel++) {
    const level = Math.round(255 * heatmap[pixel]);
    rgba[4 * pixel] = ramp[3 * level];
    rgba[4 * pixel + 1] = ramp[3 * level + 1];
    rgba[4 * pixel + 2] = ramp[3 * level + 2];
    rgba[4 * pixel + 3] = level;
  }
  return rgba;
}

function firstLine(error) {
  return String(error.message ?? error).split("\n")[0];
}
