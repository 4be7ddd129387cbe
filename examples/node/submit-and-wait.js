// Submits a job with amqplib, and waits for its terminal event.
//
//   npm install
//   node submit-and-wait.js "A lighthouse at dusk"
import { randomUUID } from 'node:crypto';
import amqp from 'amqplib';
import { HTTP } from 'cloudevents';

const jobId = randomUUID();
const connection = await amqp.connect(process.env.AMQP_URL ?? 'amqp://guest:guest@127.0.0.1:5672/%2f');
// Confirms tell that the broker has a message; returned messages have reached no queue.
const channel = await connection.createConfirmChannel();
channel.on('return', () => {
  console.error('no worker has declared the queue of commands yet');
  process.exit(1);
});

// Before the command is published, so that no event is missed. A service would use a durable queue with a name.
const { queue } = await channel.assertQueue('', { exclusive: true });
await channel.bindQueue(queue, 'assets.events', 'assets.generation.*');

const seen = new Set();
const ended = new Promise((resolve) => {
  channel.consume(queue, (message) => {
    // Structured events have the same form over HTTP and AMQP.
    const headers = { 'content-type': message.properties.contentType };
    const event = HTTP.toEvent({ headers, body: message.content.toString() });
    channel.ack(message);
    // Events are delivered at least once; their ids tell which ones are known.
    if (event.data.job_id !== jobId || seen.has(event.id)) {
      return;
    }
    seen.add(event.id);
    const kind = event.type.replace('assets.generation.', '');
    console.log(kind);
    if (kind === 'completed' || kind === 'failed') {
      resolve({ kind, data: event.data });
    }
  });
});

const command = { job_id: jobId, project_id: 42, image_descriptions: process.argv.slice(2) };
const options = { contentType: 'application/json', persistent: true, mandatory: true };
channel.publish('assets.commands', 'generate', Buffer.from(JSON.stringify(command)), options);
await channel.waitForConfirms();

const { kind, data } = await ended;
console.log(`${data.succeeded} of ${data.total} images of job ${jobId}`);
for (const asset of data.assets) {
  console.log(asset.uri);
}
await connection.close();
process.exitCode = kind === 'completed' ? 0 : 1;
