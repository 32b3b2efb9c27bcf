// The way to the host: MCP Apps' JSON-RPC by postMessage. Tools and pictures come through it, nothing from elsewhere.

const VERSION = "2026-01-26";
const host = { tools: false, context: false, modes: [], handlers: new Map(), pending: new Map(), last: 0 };

function post(message) {
  window.parent.postMessage({ jsonrpc: "2.0", ...message }, "*");
}

function request(method, params) {
  const id = ++host.last;
  return new Promise((resolve, reject) => {
    host.pending.set(id, { resolve, reject });
    post({ id, method, params });
  });
}

function notify(method, params = {}) {
  post({ method, params });
}

function on(method, handler) {
  host.handlers.set(method, handler);
}

function answer({ id, method, params }) {
  const handler = host.handlers.get(method);
  if (id === undefined) handler?.(params ?? {});
  else if (handler) post({ id, result: handler(params ?? {}) ?? {} });
  else post({ id, error: { code: -32601, message: `There is no method ${method}.` } });
}

window.addEventListener("message", ({ source, data }) => {
  if (source !== window.parent || data?.jsonrpc !== "2.0") return;
  if (data.method) return answer(data);
  const waiting = host.pending.get(data.id);
  host.pending.delete(data.id);
  if (data.error) waiting?.reject(new Error(data.error.message));
  else waiting?.resolve(data.result);
});

async function connect(onContext) {
  const said = await request("ui/initialize", {
    protocolVersion: VERSION,
    appInfo: { name: "layerdiffuse-viewer", version: "1" },
    appCapabilities: { availableDisplayModes: ["inline", "fullscreen"] },
  });
  host.tools = Boolean(said.hostCapabilities?.serverTools);
  host.context = Boolean(said.hostCapabilities?.updateModelContext);
  onContext(said.hostContext ?? {});
  notify("ui/notifications/initialized");
}

/** What a tool says; an error of its own becomes an Error. */
async function callTool(name, args) {
  const result = await request("tools/call", { name, arguments: args });
  if (result.isError) throw new Error(textOf(result));
  return result;
}

function textOf(result) {
  return (result.content ?? []).filter((block) => block.type === "text").map((block) => block.text).join("\n");
}

/** Lets the model know in its next turn what was made here. */
async function tellModel(result) {
  if (host.context) {
    const text = `Made in the viewer: ${textOf(result)}`;
    await request("ui/update-model-context", { content: [{ type: "text", text }] }).catch(() => {});
  }
}

function bitmapOf({ blob, mimeType }) {
  const bytes = Uint8Array.from(atob(blob), (character) => character.charCodeAt(0));
  return createImageBitmap(new Blob([bytes], { type: mimeType }));
}

async function shown(uri) {
  const { contents } = await request("resources/read", { uri });
  return bitmapOf(contents[0]);
}

const bitmaps = new Map();

/** The pixels of a picture, read once: the file's own, or a smaller view where the host carries no more. */
function pixels(uri) {
  if (!bitmaps.has(uri)) {
    const reading = shown(uri).catch(() => shown(`${uri}/view?width=2048&format=webp`));
    bitmaps.set(uri, reading);
    reading.catch(() => bitmaps.delete(uri));
  }
  return bitmaps.get(uri);
}
