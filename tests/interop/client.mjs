// A client for ../interop.py, called like client.py: https of Node.js.
import { readFileSync } from "node:fs";
import { Agent, request } from "node:https";

const [ca, version, what, ...rest] = process.argv.slice(2);
const agent = new Agent({
    ca: readFileSync(ca),
    keepAlive: what === "talk",
    maxSockets: 1,
    minVersion: `TLSv${version}`,
    maxVersion: `TLSv${version}`,
});

async function ask(method, url, body) {
    const response = await new Promise((resolve, reject) => {
        request(url, { agent, method }, resolve).on("error", reject).end(body);
    });
    if (response.statusCode !== 200) throw new Error(`${method} ${url}: ${response.statusCode}`);
    for await (const piece of response) process.stdout.write(piece);
    // Node.js drops a body that was cut without a word, but for this.
    if (!response.complete) throw new Error(`${method} ${url}: cut`);
}

if (what === "talk") {
    const [url, upload] = rest;
    await ask("GET", url);
    await ask("POST", `${url}echo`, readFileSync(upload));
    await ask("GET", `${url}bytes/1000000`);
} else {
    for (const url of rest) await ask("GET", url);
}
agent.destroy();
