// Prints how a client starts an unpacked bundle, as one line of JSON: node start.mjs FOLDER

import { readFileSync } from "node:fs";
import { homedir } from "node:os";
import { join, sep } from "node:path";
import { getMcpConfigForManifest } from "@anthropic-ai/mcpb";

const folder = process.argv[2];
const manifest = JSON.parse(readFileSync(join(folder, "manifest.json"), "utf8"));
const config = await getMcpConfigForManifest({
  manifest,
  extensionPath: folder,
  systemDirs: { HOME: homedir() },
  userConfig: JSON.parse(process.argv[3] ?? "{}"),
  pathSeparator: sep,
});
console.log(JSON.stringify(config));
