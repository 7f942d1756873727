-- Registers identities that are live on some node, until their time is up, and says by another stamp that the list is
-- another: `identities` is a sorted set of texts by the millisecond at which they lapse, on this server's clock.
--
-- ARGV: prefix, time to live in milliseconds, then the texts.

local key, stamp = ARGV[1] .. 'identities', ARGV[1] .. 'identities:stamp'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local changed = redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%d', now))
for i = 3, #ARGV do
  changed = changed + redis.call('ZADD', key, string.format('%d', now + ARGV[2]), ARGV[i])
end
if changed > 0 or redis.call('EXISTS', stamp) == 0 then
  redis.call('SET', stamp, time[1] .. '-' .. time[2] .. '-' .. changed)
end
return 'ok'
