-- The identities that are live, unless the list is the one that the reader knows.
--
-- ARGV: prefix, the stamp that is known, or ''. Returns false for an unchanged list, else the stamp and the texts.

local key, stamp = ARGV[1] .. 'identities', redis.call('GET', ARGV[1] .. 'identities:stamp') or 'none'
if stamp == ARGV[2] then
  return false
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return { stamp, redis.call('ZRANGEBYSCORE', key, string.format('(%d', now), '+inf') }
