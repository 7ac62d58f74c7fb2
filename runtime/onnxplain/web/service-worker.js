// Keeps a copy of the page, so that it works without a network.
//
// `onnxplain web` writes two constants above: FILES, the page's files, each with its hash, and VERSION, the hash of
// all. Another version is another cache: it is filled aside, whole or not at all, and takes over when the reader
// says so, or when no tab shows the old one any more.

const MINE = `onnxplain ${registration.scope} `; // other pages of this host have caches of their own
const CACHE = MINE + VERSION;

addEventListener("install", (event) => event.waitUntil(fill()));
addEventListener("activate", (event) => event.waitUntil(removeOthers()));
addEventListener("message", (event) => event.data === "take over" && skipWaiting());
addEventListener("fetch", (event) => event.respondWith(answer(event.request)));

async function fill() {
  const cache = await caches.open(CACHE);
  const requests = Object.entries(FILES).map(([path, integrity]) => new Request(path, { cache: "no-cache", integrity }));
  await cache.addAll(requests);
}

async function removeOthers() {
  for (const name of await caches.keys()) {
    if (name.startsWith(MINE) && name !== CACHE) await caches.delete(name);
  }
}

async function answer(request) {
  const path = request.url.replace(/(\/index\.html)?([?#].*)?$/, (_, index) => (index ? "/" : ""));
  const cache = await caches.open(CACHE);
  return (await cache.match(path)) ?? fetch(request);
}
