// Loads an atlas with PixiJS's own loader, without a screen, and prints what its textures are: node pixi.mjs ATLAS
import { readFile } from "node:fs/promises";
import { pathToFileURL } from "node:url";
import { PNG } from "pngjs";

globalThis.navigator ??= { userAgent: "node" };
const { Assets, BufferImageSource, DOMAdapter, ExtensionType, Texture, extensions } = await import("pixi.js");

// What a browser gives: fetch, and pictures. Everything else is the engine's.
const open = async (url) => readFile(new URL(url));
DOMAdapter.set({ ...DOMAdapter.get(), getBaseUrl: () => "file:///", fetch: async (url) => new Response(await open(url)) });
extensions.add({
  extension: { type: ExtensionType.LoadParser, priority: 1000 },
  id: "png",
  name: "png",
  test: (url) => url.endsWith(".png"),
  load: async (url) => {
    const { data, width, height } = PNG.sync.read(await open(url));
    return new Texture({ source: new BufferImageSource({ resource: new Uint8Array(data), width, height }), label: url });
  },
});

await Assets.init({ skipDetections: true });
const sheet = await Assets.load(pathToFileURL(process.argv[2]).href);
const box = ({ x, y, width, height }) => [x, y, width, height];
const found = Object.entries(sheet.textures).map(([name, { frame, trim, orig, source }]) => ({
  name,
  frame: box(frame),
  trim: trim ? box(trim) : null,
  canvas: [orig.width, orig.height],
  sheet: [source.width, source.height],
}));
console.log(JSON.stringify(found));
process.exit(0);
