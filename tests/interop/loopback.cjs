// Loaded before a server (node -r): whatever it listens on, it listens on loopback only. Both servers would bind all
// interfaces and have no option for it.
"use strict";
const net = require("node:net");
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (...given) {
  const callback = given.find((one) => typeof one === "function");
  const named = given[0] !== null && typeof given[0] === "object" ? given[0] : { port: Number(given[0]) };
  return listen.call(this, { ...named, host: "127.0.0.1" }, callback);
};
