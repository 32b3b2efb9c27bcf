// Reads an atlas with Phaser's own parsers into its own texture and prints the frames: node phaser.cjs ATLAS
const { readFileSync } = require("node:fs");
const { dirname, join } = require("node:path");
const { PNG } = require("pngjs");

globalThis.window ??= globalThis;
globalThis.document ??= {};
const textures = join(__dirname, "node_modules/phaser/src/textures"); // which the package does not export
const Texture = require(join(textures, "Texture.js"));
const atlas = JSON.parse(readFileSync(process.argv[2], "utf8"));
const { width, height } = PNG.sync.read(readFileSync(join(dirname(process.argv[2]), atlas.meta.image)));

const texture = Object.create(Texture.prototype, {
  key: { value: "sheet" },
  frames: { value: {} },
  source: { value: [{ width, height, resolution: 1 }] },
  firstFrame: { value: "__BASE", writable: true },
  frameTotal: { value: 0, writable: true },
  customData: { value: {} },
});
const parser = Array.isArray(atlas.frames) ? "JSONArray" : "JSONHash";
require(join(textures, "parsers", `${parser}.js`))(texture, 0, atlas);
const found = Object.values(texture.frames)
  .filter((frame) => frame.name !== "__BASE")
  .map((frame) => ({
    name: frame.name,
    frame: [frame.cutX, frame.cutY, frame.cutWidth, frame.cutHeight],
    trim: frame.trimmed ? [frame.x, frame.y, frame.width, frame.height] : null,
    canvas: [frame.realWidth, frame.realHeight],
    sheet: [width, height],
  }));
console.log(JSON.stringify(found));
