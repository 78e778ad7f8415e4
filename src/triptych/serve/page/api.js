// Requests to the server that this page came from.

// `kind`: the status, or "Network" if the server cannot be reached; `language.js` has texts for some.
export class ApiError extends Error {
  constructor(message, kind) {
    super(message);
    this.kind = kind;
  }
}

async function send(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    throw new ApiError(error.message, "Network");
  }
}

function sendJson(path, body) {
  return send(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
}

export async function post(path, body) {
  return unwrap(await sendJson(path, body));
}

export async function get(path) {
  return unwrap(await send(path));
}

async function unwrap(response) {
  let body = {};
  try {
    body = await response.json();
  } catch {
    body = {};
  }
  if (!response.ok) throw new ApiError(body.error?.message ?? `The server answered with status ${response.status}.`, response.status);
  return body;
}

// Pieces of a streamed chat completion.
export async function* chatPieces(model, messages) {
  const response = await sendJson("v1/chat/completions", { model, messages, stream: true });
  if (!response.ok) await unwrap(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    const events = rest.split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const part = JSON.parse(data);
      if (part.error) throw new ApiError(part.error.message, part.error.type === "server_error" ? 500 : 400);
      const text = part.choices?.[0]?.delta?.content;
      if (text) yield text;
    }
  }
}
