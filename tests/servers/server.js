// A stateful server as such servers are: workers, child processes, temporary files; and what it may not do.
'use strict';
const { execFileSync } = require('node:child_process');
const crypto = require('node:crypto');
const fs = require('node:fs');
const http = require('node:http');
const os = require('node:os');
const path = require('node:path');
const zlib = require('node:zlib');

const STATE = process.env.TESTD_STATE || '/sandbox/state';

function number(name, add = 0) {
  const file = path.join(STATE, name);
  let value = 0;
  try {
    value = parseInt(fs.readFileSync(file, 'utf8'), 10);
  } catch (error) {
    if (error.code !== 'ENOENT') throw error;
  }
  if (add) {
    value += add;
    const fresh = fs.openSync(`${file}.new`, 'w');
    fs.writeSync(fresh, String(value));
    fs.fsyncSync(fresh);
    fs.closeSync(fresh);
    fs.renameSync(`${file}.new`, file);
  }
  return value;
}

function became(what) {
  try {
    what();
    return 0;
  } catch (error) {
    return error.code || String(error);
  }
}

const write = (file) => fs.writeFileSync(file, 'x');

function tried() {
  return {
    'may make temporary files': became(() => write(path.join(fs.mkdtempSync(path.join(os.tmpdir(), 'n-')), 'x'))),
    'may write its state': became(() => write(path.join(STATE, 'tried'))),
    'may run itself': became(() => execFileSync(process.execPath, ['-e', '0'])),
    'may size its heap': became(() => fs.readFileSync('/proc/meminfo') && process.memoryUsage().rss),
    'may count processors': became(() => { if (os.cpus().length === 0) throw new Error('none'); }),
    'may hash and pack': became(() => crypto.createHash('sha256').update(zlib.gzipSync('x')).digest()),
    'may start a worker': became(() => new (require('node:worker_threads').Worker)('0', { eval: true })),
    'may read its configuration': became(() => fs.readFileSync('/etc/passwd')),
    'change its program': became(() => write('/app/server')),
    'add to its program': became(() => write('/app/new')),
    'add to its modules': became(() => write('/usr/lib/new.js')),
    'change the users': became(() => write('/etc/passwd')),
    'list the root': became(() => fs.readdirSync('/')),
  };
}

const starts = number('starts', 1);
process.on('SIGTERM', () => process.exit(0));
http.createServer((request, response) => {
  let body;
  if (request.url === '/incr') body = number('clicks', 1);
  else if (request.url === '/tried') body = tried();
  else if (request.url === '/healthz') body = 'well';
  else {
    const version = fs.readFileSync('/app/VERSION', 'utf8').trim();
    body = { version, starts, pid: process.pid, clicks: number('clicks') };
  }
  response.end(JSON.stringify(body));
}).listen(Number(process.env.TESTD_PORT), '127.0.0.1');
