"""A receiver of events over TLS: python3 receiver.py webhook|syslog PORT CERT KEY OUT [SECRET]
Appends each event that it took to OUT, one a line. Ends by itself after two minutes."""
import hashlib, hmac, json, socket, ssl, sys, threading, time

kind, port, cert, key, out = sys.argv[1:6]
secret = open(sys.argv[6], 'rb').read().strip() if len(sys.argv) > 6 else b''
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(cert, key)
lock = threading.Lock()

def keep(events):
    with lock, open(out, 'a') as file:
        file.writelines(json.dumps(event) + '\n' for event in events)

def webhook(line, stream):
    length, signed = 0, ''
    stream.readline()
    for header in iter(lambda: stream.readline().strip(), b''):
        name, value = header.decode().split(': ', 1)
        length = int(value) if name.lower() == 'content-length' else length
        signed = value if name.lower() == 'keyward-signature' else signed
    body = stream.read(length)
    at, mac = (part.split('=', 1)[1] for part in signed.split(','))
    right = hmac.new(secret, at.encode() + b'.' + body, hashlib.sha256).hexdigest()
    if hmac.compare_digest(mac, right):
        keep(json.loads(body))
    line.sendall(b'HTTP/1.1 %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n' % (b'200 OK' if mac == right else b'403 No'))

def syslog(line, stream):
    while True:
        digits = b''
        while not digits.endswith(b' '):
            byte = stream.read(1)
            if not byte:
                return
            digits += byte
        keep([json.loads(stream.read(int(digits)).decode().split('\ufeff', 1)[1])])

def serve(raw):
    try:
        with context.wrap_socket(raw, server_side=True) as line, line.makefile('rb') as stream:
            (webhook if kind == 'webhook' else syslog)(line, stream)
    except OSError:
        pass  # a client that refuses the certificate, or has gone

listener = socket.create_server(('127.0.0.1', int(port)))
listener.settimeout(1)
print('listening', flush=True)
end = time.monotonic() + 120
while time.monotonic() < end:
    try:
        raw, _ = listener.accept()
    except TimeoutError:
        continue
    threading.Thread(target=serve, args=(raw,), daemon=True).start()
