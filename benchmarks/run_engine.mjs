// Runs models in one of onnxruntime's JavaScript packages: node run_engine.mjs PACKAGE FOLDER
//
// FOLDER/jobs.json lists models, each as {"model", "runs"}: its path, and for each run its inputs by name, as
// {"type", "dims", "file"} with the numbers in FOLDER/file. FOLDER/results.json then lists for each model the
// outputs of its runs in the same way, or the error that it failed with. Packages are found through NODE_PATH.
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const ARRAYS = { float32: Float32Array, int32: Int32Array, int64: BigInt64Array, uint8: Uint8Array };

const [name, folder] = process.argv.slice(2);
const ort = createRequire(import.meta.url)(name);

function read({ type, dims, file }) {
  const bytes = readFileSync(join(folder, file));
  return new ort.Tensor(type, new ARRAYS[type](new Uint8Array(bytes).buffer), dims);
}

function write({ type, dims, data }, file) {
  writeFileSync(join(folder, file), new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  return { type, dims, file };
}

function mapValues(object, change) {
  return Object.fromEntries(Object.entries(object).map(([key, value]) => [key, change(value, key)]));
}

async function run({ model, runs }, job) {
  const options = { logSeverityLevel: 4, logVerbosityLevel: 0 };
  const session = await ort.InferenceSession.create(new Uint8Array(readFileSync(model)), options);
  const outputs = [];
  for (const [number, feeds] of runs.entries()) {
    const results = await session.run(mapValues(feeds, read), options);
    outputs.push(mapValues(results, (tensor, key) => write(tensor, `output.${job}.${number}.${key}`)));
  }
  await session.release();
  return outputs;
}

const results = [];
for (const [number, job] of JSON.parse(readFileSync(join(folder, "jobs.json"), "utf8")).entries()) {
  results.push(await run(job, number).catch((error) => ({ error: String(error.message ?? error) })));
}
writeFileSync(join(folder, "results.json"), JSON.stringify(results));
