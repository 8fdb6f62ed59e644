/** The server's stream of events (text/event-stream), read with fetch because EventSource cannot send a header. */

export interface ServerEvent {
  name: string;
  data: unknown;
}

/** Splits text that arrives in pieces into events, by the rules of the HTML standard. */
export class EventParser {
  private rest = "";

  push(piece: string): ServerEvent[] {
    const lines = (this.rest + piece).replaceAll("\r\n", "\n");
    const blocks = lines.split("\n\n");
    this.rest = blocks.pop() ?? "";
    return blocks.map(parseBlock).filter((event) => event !== null);
  }
}

function parseBlock(block: string): ServerEvent | null {
  let name = "message";
  const data: string[] = [];
  for (const line of block.split("\n")) {
    const [field, value] = splitField(line);
    if (field === "event") name = value;
    else if (field === "data") data.push(value);
  }
  if (data.length === 0) return null;
  try {
    return { name, data: JSON.parse(data.join("\n")) };
  } catch {
    return null;
  }
}

function splitField(line: string): [string, string] {
  const colon = line.indexOf(":");
  if (colon < 0) return [line, ""];
  return [line.slice(0, colon), line.slice(colon + 1).replace(/^ /, "")];
}

const MAX_PAUSE_S = 15;

export interface Listeners {
  onEvent: (event: ServerEvent) => void;
  /** Called when the stream opens (true) and when it is lost (false), then with what was raised, if anything was. */
  onState: (connected: boolean, error?: unknown) => void;
}

/** Read events until `signal` aborts, which `listeners` may do; connect again after 1, 2, 4 … 15 s where the stream ends. */
export async function listen(open: () => Promise<Response>, listeners: Listeners, signal: AbortSignal): Promise<void> {
  let pause = 1;
  while (!signal.aborted) {
    let fault: unknown = null;
    try {
      const { body } = await open();
      if (body === null) throw new Error("an empty answer");
      listeners.onState(true);
      pause = 1;
      await readEvents(body, listeners.onEvent);
    } catch (error) {
      fault = error;
    }
    if (isAborted(signal)) return;
    listeners.onState(false, fault);
    if (isAborted(signal)) return;
    await new Promise((resolve) => setTimeout(resolve, pause * 1000));
    pause = Math.min(2 * pause, MAX_PAUSE_S);
  }
}

function isAborted(signal: AbortSignal): boolean {
  return signal.aborted;
}

async function readEvents(body: ReadableStream<Uint8Array>, onEvent: (event: ServerEvent) => void): Promise<void> {
  const parser = new EventParser();
  const decoder = new TextDecoder();
  const reader = body.getReader();
  for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
    parser.push(decoder.decode(value, { stream: true })).forEach(onEvent);
  }
}
