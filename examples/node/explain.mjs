// Prints what a classifier sees in a picture, and paints where it sees it.
//
//     node explain.mjs MODEL.onnx PICTURE OVERLAY.png
//
// MODEL.onnx is a file of `onnxplain export SOURCE -o MODEL.onnx --heatmap gradcam --pixels`. The classes' names
// are read from MODEL.json beside it, where there is one: `onnxplain inspect --json MODEL.onnx > MODEL.json`.

import { existsSync, realpathSync } from "node:fs";
import { readFile, rename, rm } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import ort from "onnxruntime-node";
import sharp from "sharp";

const SHOWN = 5;

/** Load a model, and what stands beside it. */
export async function load(path) {
  const session = await ort.InferenceSession.create(path, { logSeverityLevel: 4 });
  const image = session.inputMetadata.find(({ name }) => name === "image");
  if (image?.type !== "uint8" || !session.outputNames.includes("heatmap")) {
    throw new Error("it doesn't take pixels and return heatmaps; export it with --heatmap gradcam --pixels");
  }
  const beside = path.replace(/(\.onnx)?$/, ".json");
  const manifest = existsSync(beside) ? await trying(`${beside} is damaged`, readJson(beside)) : {};
  return { session, labels: manifest.labels ?? [], activation: manifest.activation ?? "none" };
}

async function readJson(path) {
  return JSON.parse(await readFile(path, "utf8"));
}

/** Decode a picture as a viewer would show it: turned as EXIF says, transparency over white, RGB. */
export async function decode(path) {
  const picture = sharp(path, { ignoreIcc: true, failOn: "error" }).autoOrient().flatten({ background: "white" });
  const { data, info } = await picture.toColourspace("srgb").raw({ depth: "uchar" }).toBuffer({ resolveWithObject: true });
  return { data, width: info.width, height: info.height };
}

/** Explain the most likely class of a picture; the heatmap is as large as the picture. */
export async function explain({ session }, { data, width, height }) {
  const image = new ort.Tensor("uint8", data, [1, height, width, 3]);
  const class_index = new ort.Tensor("int64", [-1n], [1, 1]); // -1n, -2n for the top two, and [1, 2]
  const { logits, heatmap } = await session.run({ image, class_index }, ["logits", "heatmap"]);
  if (!logits.data.every(Number.isFinite) || !heatmap.data.every(Number.isFinite)) {
    throw new Error("its outputs are NaN or infinite, so there is nothing to explain");
  }
  return { logits: logits.data, heatmap: heatmap.data };
}

/** Paint heat over a picture, from red to yellow: the hotter, the less shows through. */
async function paint({ data, width, height }, heatmap, path) {
  const heat = new Uint8Array(4 * heatmap.length);
  for (let pixel = 0; pixel < heatmap.length; pixel++) {
    heat[4 * pixel] = 255;
    heat[4 * pixel + 1] = 255 * heatmap[pixel];
    heat[4 * pixel + 3] = 204 * heatmap[pixel];
  }
  const aside = `${path}.${process.pid}.part`;
  try {
    await sharp(data, { raw: { width, height, channels: 3 } })
      .composite([{ input: heat, raw: { width, height, channels: 4 } }])
      .png()
      .toFile(aside);
    await rename(aside, path);
  } finally {
    await rm(aside, { force: true });
  }
}

function probabilities(logits, activation) {
  if (activation === "sigmoid") return Array.from(logits, (logit) => 1 / (1 + Math.exp(-logit)));
  if (activation !== "softmax") return Array.from(logits);
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = powers.reduce((one, other) => one + other);
  return powers.map((power) => power / sum);
}

/** Run a step; its error begins with what was tried. */
async function trying(what, step) {
  try {
    return await step;
  } catch (error) {
    throw new Error(`${what}: ${error.message.split("\n")[0]}`);
  }
}

async function main([modelPath, picturePath, overlayPath, ...rest]) {
  if (!overlayPath?.endsWith(".png") || rest.length) {
    console.error("Usage: node explain.mjs MODEL.onnx PICTURE OVERLAY.png");
    return 2;
  }
  try {
    const model = await trying(`can't use ${modelPath}`, load(modelPath));
    const picture = await trying(`can't read ${picturePath}`, decode(picturePath));
    const { logits, heatmap } = await trying("the model failed", explain(model, picture));
    await trying(`can't write ${overlayPath}`, paint(picture, heatmap, overlayPath));
    const scores = probabilities(logits, model.activation);
    const classes = [...scores.keys()].sort((one, other) => logits[other] - logits[one]).slice(0, SHOWN);
    for (const index of classes) {
      console.log(`${String(index).padStart(6)} ${scores[index].toFixed(4).padStart(8)}  ${model.labels[index] ?? ""}`);
    }
    return 0;
  } catch (error) {
    console.error(`explain: ${error.message}`);
    return 1;
  }
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  process.exitCode = await main(process.argv.slice(2));
}
