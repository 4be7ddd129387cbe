// Parses an AsyncAPI document with the parser of AsyncAPI, and prints it as JSON with its references resolved.
// Usage: node asyncapi.mjs FOLDER_OF_NODE_MODULES DOCUMENT
import { createRequire } from 'node:module';

const [packages, path] = process.argv.slice(2);
const { Parser, fromFile } = createRequire(`${packages}/`)('@asyncapi/parser');
const { document, diagnostics } = await fromFile(new Parser(), path).parse();
// Severity 0 is an error, 1 a warning, 2 a piece of information.
const problems = diagnostics.filter((diagnostic) => diagnostic.severity < 2);
for (const { code, message, path } of problems) {
  console.error(`${code} at ${path.join('/')}: ${message}`);
}
if (!document || problems.length > 0) {
  process.exit(1);
}
console.log(JSON.stringify(document.json()));
