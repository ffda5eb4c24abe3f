/**
 * `wsgi.errors`, the option `errors`, and the reports that the server writes there.
 *
 * @module
 */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import process from "node:process";
import { test } from "node:test";
import {
  accessLog,
  type Application,
  type ApplicationLike,
  errorPage,
  type ErrorStream,
  health,
  toEnviron,
  toFetch,
} from "../mod.ts";
import {
  answer,
  bytes,
  ErrorLog,
  FAILURE,
  HERE,
  ok,
  ORIGIN,
  reportsIn,
  RUNTIME,
  settle,
  standardErrorOf,
  text,
  unchecked,
} from "./support.ts";

// wsgi.errors

test("errors go to standard error in whole lines", async () => {
  const printed = await standardErrorOf(async () => {
    const handler = toFetch((environ, startResponse) => {
      const errors = environ["wsgi.errors"];
      errors.write("one ");
      errors.write("line\nan");
      errors.writelines(["other\n", "a third\na fo", "urth\nthe last"]);
      ok(startResponse);
      return [];
    });
    await (await handler(new Request(HERE))).text();
  });
  assert.deepEqual(printed.join("\n").split("\n"), ["one line", "another", "a third", "a fourth", "the last"]);
  for (const entry of printed) assert.ok(!entry.endsWith("\n"));
});

test("the unfinished lines of concurrent requests do not mix", async () => {
  const printed = await standardErrorOf(async () => {
    const handler = toFetch(async (environ, startResponse) => {
      for (const word of ["begins, ", "goes on, ", "ends\n", "and says ", "no more"]) {
        environ["wsgi.errors"].write(word === "begins, " ? `${environ.PATH_INFO} begins, ` : word);
        await settle();
      }
      ok(startResponse);
      return [];
    });
    await Promise.all(["a", "b", "c"].map(async (path) => (await handler(new Request(HERE + path))).text()));
  });
  assert.deepEqual(printed.toSorted(), [
    "/a begins, goes on, ends",
    "/b begins, goes on, ends",
    "/c begins, goes on, ends",
    ...new Array(3).fill("and says no more"),
  ]);
});

test("flush prints what is not a whole line yet, and nothing else", async () => {
  const printed = await standardErrorOf(() => {
    const errors = toEnviron(new Request(HERE))["wsgi.errors"];
    errors.flush();
    errors.write("");
    errors.flush();
    errors.write("half");
    errors.flush();
    errors.flush();
    errors.write(" a line\n");
    errors.flush();
    errors.write("\n");
  });
  assert.deepEqual(printed, ["half", " a line", ""]);
});

test("wsgi.errors never throws, whatever it is given and wherever it goes", async () => {
  const hostile: unknown[] = [
    undefined,
    null,
    42,
    Symbol("symbol"),
    {},
    new Error("error"),
    bytes("bytes"),
    Object.create(null),
    {
      toString() {
        throw new Error("unreadable");
      },
    },
  ];
  await standardErrorOf(() => {
    const errors = toEnviron(new Request(HERE))["wsgi.errors"];
    for (const value of hostile) {
      errors.write(value as string);
      errors.writelines(value as string[]);
      errors.writelines([value as string]);
    }
    errors.flush();
    console.error = () => {
      throw new Error("Standard error is closed");
    };
    errors.write("text\n");
    errors.writelines(["text\n"]);
    errors.write("text");
    errors.flush();
  });
});

test("lone surrogates come out as replacement characters, on the real standard error", () => {
  const program = `
    const { toEnviron } = await import(${JSON.stringify(new URL("../mod.ts", import.meta.url).href)});
    const errors = toEnviron(new Request("http://test.example/"))["wsgi.errors"];
    errors.write("a\\ud800b\\udc00c ");
    errors.writelines(["\\u4f60\\n", "last\\n"]);`;
  const { stdout, stderr } = spawnSync(process.execPath, RUNTIME === "deno" ? ["eval", program] : ["-e", program]);
  assert.equal(text(stdout), "");
  assert.equal(new TextDecoder("utf-8", { fatal: true }).decode(stderr), "a\ufffdb\ufffdc \u4f60\nlast\n");
});

// The option errors

test("the option errors is used instead of standard error", async () => {
  const printed = await standardErrorOf(async () => {
    const { response, errors } = await answer((environ, startResponse) => {
      environ["wsgi.errors"].write("noted, ");
      environ["wsgi.errors"].writelines(["twice\n"]);
      environ["wsgi.errors"].flush();
      ok(startResponse);
      return [];
    });
    await response.text();
    assert.equal(errors.text, "noted, twice\n");
    assert.equal((await answer(unchecked(() => "bad" as never))).response.status, 500);
  });
  assert.deepEqual(printed, []);
});

test("an option errors that throws does no harm to the response", async () => {
  const fail = () => {
    throw new Error("The log is full");
  };
  const errors: ErrorStream = { write: fail, writelines: fail, flush: fail };
  const cases: [what: string, app: ApplicationLike, status: number, body: string][] = [
    ["an application that fails", () => fail(), 500, "Internal Server Error\n"],
    [
      "one that reports nothing",
      (_environ, startResponse) => {
        ok(startResponse);
        return [bytes("fine")];
      },
      200,
      "fine",
    ],
    [
      "one whose close fails",
      (_environ, startResponse) => {
        ok(startResponse);
        return Object.assign([bytes("fine")], { close: fail });
      },
      200,
      "fine",
    ],
  ];
  await standardErrorOf(async () => {
    for (const [what, app, status, body] of cases) {
      const { response } = await answer(app, new Request(HERE), { errors });
      assert.equal(response.status, status, what);
      assert.equal(await response.text(), body, what);
    }
  });
});

test("a report that the option errors refuses goes to standard error", async () => {
  const refuse = () => {
    throw new Error("The log is full");
  };
  const printed = await standardErrorOf(async () => {
    const errors: ErrorStream = { write: refuse, writelines: refuse, flush: refuse };
    await answer(() => Promise.reject(new Error("The application failed")), new Request(HERE), { errors });
  });
  assert.match(printed.join("\n"), /The application failed/);
  assert.match(printed.join("\n"), /The log is full/);
});

test("the option errors gets what the application writes and what fails", async () => {
  const errors = new ErrorLog();
  let given: unknown;
  const handler = toFetch((environ) => {
    given = environ["wsgi.errors"];
    environ["wsgi.errors"].write("written\n");
    throw FAILURE;
  }, { errors });
  await handler(new Request(`${ORIGIN}/path`));
  assert.equal(given, errors);
  assert.match(errors.text, /^written\n.*GET \/path: Error: This application fails/);
});

test("an option errors that fails itself does not spoil the answer", async () => {
  const fail = () => {
    throw new Error("The disk is full");
  };
  const handler = toFetch((_environ, startResponse) => {
    ok(startResponse);
    return [bytes("sent")];
  }, { errors: { write: fail, writelines: fail, flush: fail } });
  const { error } = console;
  console.error = () => {};
  try {
    assert.equal(await (await handler(new Request(ORIGIN))).text(), "sent");
  } finally {
    console.error = error;
  }
});

// Reports of the server

test("a report shows the address of the request without characters that would move a terminal", async () => {
  const errors = new ErrorLog();
  const request = new Request(HERE);
  Object.defineProperty(request, "url", { value: `${HERE}\u009b31m\u202e` });
  await toFetch(() => Promise.reject(new Error("Any")), { errors })(request);
  assert.match(errors.text, /^Application failed on GET \S+%C2%9B31m%E2%80%AE: /);
});

const HOSTILE = "\x1b[2J\x9b2J\x07\x7f\r\u2028\u2029\u202e\u2066";
const ESCAPED = String.raw`\x1b[2J\x9b2J\x07\x7f\x0d\u2028\u2029\u202e\u2066`;
const FORGED = "\nApplication failed on GET http://test.example/: forged\n\n\ttabbed";

const failing = (message: string): Application => () => {
  throw new Error(message);
};

const REPORTING: [what: string, app: (message: string) => Application][] = [
  ["an error", failing],
  ["a cause", (message) => () => {
    throw new Error("Out of order", { cause: new Error(message) });
  }],
  ["text that is thrown", (message) => () => {
    throw message;
  }],
  ["a name", (message) => () => {
    throw Object.assign(new Error("Out of order"), { name: message, stack: "" });
  }],
  ["work after the response", (message) => (environ, startResponse) => {
    environ["fetch.context"]?.waitUntil(Promise.reject(new Error(message)));
    ok(startResponse);
    return [];
  }],
  ["an error that has a page", (message) => errorPage(failing(message))],
  ["an error in a health check", (message) =>
    health(() => [], {
      ready: "/",
      check: () => {
        throw new Error(message);
      },
    })],
  ["an error of the access log", (message) =>
    accessLog((_environ, startResponse) => (ok(startResponse), []), {
      write: () => {
        throw new Error(message);
      },
    })],
];

for (const [what, app] of REPORTING) {
  test(`a report of ${what} is a single one, without characters that a terminal would obey`, async () => {
    const { errors } = await answer(app(`found ${HOSTILE}${FORGED}`));
    await errors.matches(/forged/);
    assert.ok(!/[\p{Cc}\p{Bidi_Control}\u2028\u2029]/u.test(errors.text.replace(/[\t\n]/g, "")), errors.text);
    assert.equal(reportsIn(errors).length, 1, errors.text);
    if (what !== "text that is thrown") assert.ok(errors.text.includes(`found ${ESCAPED}\n`), errors.text);
  });
}

test("a report of an error whose cause is itself ends", async () => {
  const error = new Error("cyclic");
  error.cause = error;
  const { errors } = await answer(() => {
    throw error;
  });
  assert.equal(errors.text.match(/^ *Caused by: /mg)?.length, 9);
});

test("text that an application itself writes to wsgi.errors stays as it is", async () => {
  const { errors } = await answer((environ, startResponse) => {
    environ["wsgi.errors"].write(`${HOSTILE}${FORGED}\n`);
    ok(startResponse);
    return [];
  });
  assert.equal(errors.text, `${HOSTILE}${FORGED}\n`);
});
