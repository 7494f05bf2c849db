// A function that has `act` done `delay` milliseconds after it is first called, once for all calls until then: what is
// called for in a burst is done once, and the last call of a burst is never lost. `stop` takes it back.
export function soon(act, delay) {
  let timer = null;
  const call = () => {
    timer ??= setTimeout(() => {
      timer = null;
      act();
    }, delay);
  };
  call.stop = () => clearTimeout(timer);
  return call;
}
