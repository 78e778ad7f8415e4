// Requests to the server that this page came from.

export class ApiError extends Error {}

export async function post(path, body) {
  const response = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  return unwrap(response);
}

export async function get(path) {
  return unwrap(await fetch(path));
}

async function unwrap(response) {
  let body = {};
  try {
    body = await response.json();
  } catch {
    body = {};
  }
  if (!response.ok) throw new ApiError(body.error?.message ?? `The server answered with status ${response.status}.`);
  return body;
}

// Pieces of a streamed chat completion.
export async function* chatPieces(model, messages) {
  const response = await fetch("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ model, messages, stream: true }),
  });
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
      if (part.error) throw new ApiError(part.error.message);
      const text = part.choices?.[0]?.delta?.content;
      if (text) yield text;
    }
  }
}
