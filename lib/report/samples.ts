// A few episodes as readable turns, and as the tokens that were learnt from, painted by provenance.
import { ACTION, OBSERVATION, type Trajectory, type Turn } from "../agent/types.ts";
import type { RunData, SampleEpisode } from "./data.ts";
import { type Html, html } from "./html.ts";

/** Tokens of one trajectory that are drawn; the page says when there are more. */
const MOST_TOKENS = 6000;

function signed(value: number): string {
  return `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
}

/** How surprised the policy was by its own choice, in four steps. */
function surprise(logprob: number): string {
  const probability = Math.exp(logprob);
  if (probability >= 0.9) return "";
  if (probability >= 0.5) return " s1";
  return probability >= 0.1 ? " s2" : " s3";
}

function paintedTokens(trajectory: Trajectory, piece: RunData["piece"]): Html {
  const spans: Html[] = [];
  const shown = Math.min(MOST_TOKENS, trajectory.tokens.length);
  for (let i = 0; i < shown; i++) {
    const id = trajectory.tokens[i] as number;
    const from = trajectory.provenance[i];
    const text = piece === undefined ? `${id} ` : piece(id);
    // A line break of the text is shown by its sign and also made.
    const visible = text.replaceAll("\n", "↵\n");
    if (from === ACTION) {
      const logprob = trajectory.logprobs[i] as number;
      spans.push(
        html`<span class="a${surprise(logprob)}" title="token ${i}, id ${id}, logprob ${logprob.toFixed(4)}">${visible}</span>`,
      );
    } else {
      spans.push(
        html`<span class="${from === OBSERVATION ? "o" : "p"}" title="token ${i}, id ${id}">${visible}</span>`,
      );
    }
  }
  const left = trajectory.tokens.length - shown;
  return html`<details class="tokens"><summary>${trajectory.tokens.length} tokens by provenance</summary>
<p class="legend"><span class="p">prompt</span> <span class="o">observation</span> <span class="a">action</span> <span class="a s1">p &lt; .9</span> <span class="a s2">p &lt; .5</span> <span class="a s3">p &lt; .1</span></p>
<pre>${spans}${left > 0 && html`<span class="p"> … ${left} more</span>`}</pre></details>`;
}

function turnView(turn: Turn, number: number): Html {
  const marks = [
    turn.formatError?.replace("_", " "),
    turn.finish === "length" ? "cut at the token limit" : null,
  ].filter((mark) => mark !== null && mark !== undefined);
  return html`<li><p class="who">turn ${number + 1}${marks.map((mark) => html` <span class="badge bad">${mark}</span>`)}</p>
<pre class="action">${turn.text}</pre>${turn.observation !== "" && html`<pre class="observation">${turn.observation}</pre>`}</li>`;
}

/** One episode as a details element. */
export function sampleView(sample: SampleEpisode, piece: RunData["piece"]): Html {
  const { trajectory, reward, advantage } = sample;
  const good = trajectory.verdict === "resolved";
  const facts = [
    `${trajectory.turns.length} turns`,
    trajectory.exit.replace("_", " "),
    reward === undefined ? null : `reward ${signed(reward)}`,
    advantage === undefined ? null : `advantage ${signed(advantage)}`,
  ].filter((fact) => fact !== null);
  return html`<details class="sample"><summary><span class="badge ${good ? "good" : "bad"}">${
    good ? "resolved" : (trajectory.reason ?? trajectory.verdict).replace("_", " ")
  }</span> <b>${trajectory.instanceId}</b> <span class="facts">${facts.join(" · ")}</span></summary>
<ol class="turns">${trajectory.turns.map(turnView)}</ol>
${trajectory.patch !== "" && html`<p class="who">patch that was judged</p><pre class="patch">${trajectory.patch}</pre>`}
${paintedTokens(trajectory, piece)}</details>`;
}

/** The samples of a run by stage. */
export function samplesSection(run: RunData): Html | null {
  if (run.samples.length === 0) return null;
  const stages = [...new Set(run.samples.map((sample) => sample.stage))];
  return html`<section><h2>Episodes</h2>${stages.map((stage) => {
    const mine = run.samples.filter((sample) => sample.stage === stage);
    return html`<h3>${stage}</h3>${mine.map((sample) => sampleView(sample, run.piece))}`;
  })}</section>`;
}
