// Prints the source files that binding.gyp compiles, one a line: the .cc files of the folders given as arguments.
// gyp has no globbing of its own; a folder that is empty or missing prints nothing.
import { readdirSync } from "node:fs";

for (const folder of process.argv.slice(2)) {
  let names = [];
  try {
    names = readdirSync(new URL(`../${folder}/`, import.meta.url));
  } catch (error) {
    if (error.code !== "ENOENT") throw error;
  }
  for (const name of names.sort()) if (name.endsWith(".cc")) console.log(`${folder}/${name}`);
}
