-- Says that the pipeline works. ARGV: prefix, fence, the head's epoch, its version, the beat.
if redis.call('GET', ARGV[1] .. 'fence') ~= ARGV[2] then
  return 'stale'
end
local head = redis.call('HMGET', ARGV[1] .. 'head', 'epoch', 'version')
if head[1] ~= ARGV[3] or head[2] ~= ARGV[4] then
  return 'moved'
end
redis.call('PUBLISH', ARGV[1] .. 'beat', ARGV[5])
return 'ok'
