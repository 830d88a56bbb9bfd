// Which key does what on the judging pages: the one table that handlers, badges on buttons and hints read, so that no badge promises
// what no handler keeps. Digits are not in it: they are a criterion's own.

export const LETTERS = {
  notApplicable: "x",
  cantJudge: "d",
  note: "m",
  undo: "u",
  firstError: "f",
  correct: "c",
  guidelines: "g",
  nextStep: "j",
  stepBefore: "k",
  tokens: "t",
  next: "n",
  before: "p",
  list: "l",
  shared: "i",
  skip: "s",
  gold: "E",
  done: "Enter",
};

/** On the list of runs, where a lead fills the queue; other screens give these letters their own meaning. */
export const LIST_LETTERS = { queue: "q", pair: "Q", all: "X" };

/** Of the active criterion's chips, the first to the ninth. None of them is used for anything else. */
export const CHIP_LETTERS = ["q", "w", "r", "y", "a", "h", "z", "v", "b"];
