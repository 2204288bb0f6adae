/** A microphone that hears what a test says into it, when it says it. */
(() => {
  let heard;
  const microphone = () => {
    if (!heard) {
      const context = new AudioContext();
      heard = { context, sink: context.createMediaStreamDestination() };
    }
    return heard;
  };
  navigator.mediaDevices.getUserMedia = async () => microphone().sink.stream.clone();
  window.speak = async (wav) => {
    const { context, sink } = microphone();
    const bytes = Uint8Array.from(atob(wav), (letter) => letter.charCodeAt(0));
    const said = context.createBufferSource();
    said.buffer = await context.decodeAudioData(bytes.buffer);
    said.connect(sink);
    said.start();
    await new Promise((resolve) => (said.onended = resolve));
  };
})();
