// The host of `layerdiffuse-mcp view`: carries messages between the framed page and the program.
// The token of the address is good once, for a key that this tab keeps; a reload goes on with it.

const frame = document.querySelector("iframe"), status = document.querySelector("p");

function ask(path, body, key) {
  return fetch(path, { method: "POST", headers: { Authorization: `Bearer ${key}` }, body });
}

async function keyOf(token) {
  history.replaceState(null, "", location.pathname);
  if (!token) return sessionStorage.getItem("key");
  const answer = await ask("key", "", token);
  if (answer.ok) sessionStorage.setItem("key", await answer.text());
  return sessionStorage.getItem("key");
}

function end(text) {
  frame.hidden = true;
  status.textContent = text;
}

const key = await keyOf(location.hash.slice(1));
const present = await ask("present", "", key);
if (present.ok) {
  window.addEventListener("message", async ({ source, data }) => {
    if (source !== frame.contentWindow) return;
    const answer = await ask("message", JSON.stringify(data), key).catch(() => null);
    if (answer?.ok) for (const message of await answer.json()) frame.contentWindow.postMessage(message, "*");
  });
  frame.src = "view.html";
  await present.text().catch(() => {}); // it lasts as long as the program
  end("The program has ended. Run layerdiffuse-mcp view again.");
} else {
  end("This address was opened already. Run layerdiffuse-mcp view again.");
}
