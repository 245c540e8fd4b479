// The server's API: the key, JSON, and answers that stream.

export const key = {
  get() { try { return sessionStorage.getItem("kvik.key") ?? ""; } catch { return ""; } },
  set(value) {
    try { value ? sessionStorage.setItem("kvik.key", value) : sessionStorage.removeItem("kvik.key"); }
    catch { /* storage is off */ }
  },
};

/** An answer that is not a success, in the server's words. */
export class ApiError extends Error {
  constructor(status, detail, retryAfter) {
    super(detail?.message ?? `the server answered ${status}`);
    Object.assign(this, { status, param: detail?.param, code: detail?.code, retryAfter });
  }
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  // A header can carry no others; the server will say that the key is wrong.
  const secret = key.get().replace(/[^\x21-\x7e]/g, "");
  if (secret) headers.Authorization = `Bearer ${secret}`;
  const response = await fetch(path, { ...options, headers, cache: "no-store" });
  if (!response.ok) {
    let body = null;
    try { body = await response.json(); } catch { /* no JSON: the status must do */ }
    throw new ApiError(response.status, body?.error, response.headers.get("retry-after"));
  }
  return response;
}

export const getJson = async (path, signal) => (await ask(path, { signal })).json();

/** Yields the chunks of a chat completion as they come. Aborting `signal` ends the request on the server as well. */
export async function* chat(body, signal) {
  const response = await ask("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(response.status, chunk.error);
    yield chunk;
  }
  throw new Error("the answer broke off: the connection to the server was lost");
}

/** Yields the data of server-sent events. */
export async function* events(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "", data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = lines.pop();
      for (const full of lines) {
        const line = full.endsWith("\r") ? full.slice(0, -1) : full;
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length) { yield data.join("\n"); data = []; }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
