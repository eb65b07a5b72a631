// What episodes find by name: what texts, trees and tests need. Programs that tell of the hour, the host or its load (`w`,
// `date`, `ps`) are not among them. A policy that is learning says whatever has a probability, and an observation that
// differs from run to run makes another policy of the same seed.

const TEXT =
  "awk base64 cat cmp comm cut diff egrep expand fgrep fold grep head join md5sum nl od paste printf rev sed sha256sum sort " +
  "split tac tail tee tr uniq wc";
const TREES =
  "basename chmod cp dirname find ln ls mkdir mktemp mv patch pwd readlink realpath rm rmdir touch tree";
const REST = "bash echo env expr false git python3 seq sh sleep test timeout true xargs yes";

export const PROGRAMS: readonly string[] = [TEXT, TREES, REST].join(" ").split(" ");
