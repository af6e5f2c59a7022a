// Requests to the server, and its errors in words.

/** A request that failed; `message` is for people. */
export class Trouble extends Error {
  /**
   * @param {string} message
   * @param {number} status of HTTP; 0 where no answer came
   * @param {number} retry seconds after which to try again; 0 where that is not known
   */
  constructor(message, status = 0, retry = 0) {
    super(message);
    this.status = status;
    this.retry = retry;
  }
}

let key = "";

/** Sends this key with every request from now on. */
export function useKey(given) {
  key = given;
}

/** The JSON of a path; with `body`, it is posted. */
export async function call(path, body, signal) {
  const response = await send(path, body, signal);
  try {
    return await response.json();
  } catch (error) {
    throw lost(error);
  }
}

/** The events of a streamed answer, one object each, until the server says that it has ended. */
export async function* stream(path, body, signal) {
  const response = await send(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      throw lost(error);
    });
    if (done) throw new Trouble("The answer broke off: the server has ended it.");
    const events = (left + value).split("\n\n");
    left = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const told = JSON.parse(data);
      if (told.error) throw new Trouble(told.error.message);
      yield told;
    }
  }
}

async function send(path, body, signal) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const options = { headers, signal };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    options.method = "POST";
    options.body = JSON.stringify(body);
  }
  const response = await fetch(path, options).catch((error) => {
    throw lost(error);
  });
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  const retry = Number(response.headers.get("Retry-After")) || 0;
  const message = told.error?.message ?? `The server answers with status ${response.status}.`;
  throw new Trouble(message, response.status, retry);
}

/** What a request says that got no answer; one that was stopped stays as it is. */
function lost(error) {
  if (error.name === "AbortError") return error;
  return new Trouble("The server does not answer. Is it running?");
}
