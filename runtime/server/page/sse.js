// Server-sent events, cut as the HTML standard says: an event ends at an empty line; "data" lines are joined by newlines.

/** Yields the data of each event in a response's body, as text. Ends when the body does; an unfinished event is dropped. */
export async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  const cut = eventCutter();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      yield* cut(value);
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever stops reading early wants no more of it
  }
}

/** A function that takes the text piece by piece, however it is cut, and gives the data of the events that ended in it. */
export function eventCutter() {
  let rest = "";
  let data = [];
  return function cut(piece) {
    const events = [];
    const lines = (rest + piece).split(/\r\n|\n|\r(?!$)/); // a "\r" at the very end may be half of "\r\n"
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (data.length) events.push(data.join("\n"));
        data = [];
      } else if (line.startsWith("data:")) {
        data.push(line.slice(line[5] === " " ? 6 : 5));
      }
    }
    return events;
  };
}
