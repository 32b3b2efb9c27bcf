// Makes a picture as a client on the TypeScript SDK does, and prints what it got as one line of JSON.
//
//   tsx client.ts COMMAND [ARGUMENT ...]

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";

const [command, ...args] = process.argv.slice(2);
const env = Object.fromEntries(Object.entries(process.env).filter(([, value]) => value !== undefined));
const client = new Client({ name: "scripted", version: "1.0.0" });
await client.connect(new StdioClientTransport({ command, args, env: env as Record<string, string> }));

const { tools } = await client.listTools();
const progress: number[] = [];
const result = await client.callTool(
  {
    name: "generate_transparent",
    arguments: { prompt: "a red apple", seed: 7, options: { steps: 2 }, output: { wait_seconds: 600 } },
  },
  undefined,
  { onprogress: (step) => progress.push(step.progress), resetTimeoutOnProgress: true, timeout: 60_000 },
);
const content = result.content as { type: string; uri?: string }[];
const link = content.find((block) => block.type === "resource_link");
const read = await client.readResource({ uri: link!.uri! });
console.log(
  JSON.stringify({
    tools: tools.map((tool) => tool.name),
    progress,
    kinds: content.map((block) => block.type),
    structured: result.structuredContent,
    bytes: Buffer.from(read.contents[0].blob as string, "base64").length,
  }),
);
await client.close();
