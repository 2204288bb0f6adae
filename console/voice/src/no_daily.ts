/** In place of Daily's client, whose media manager this page does not use. */

const refuse = () => {
  throw new Error("This page talks with its own server alone.");
};
export default { createCallObject: refuse, createFrame: refuse, getCallInstance: refuse };
