-- Becomes the one writer. ARGV: prefix, the least fence.
-- Returns the fence, and the head's epoch, version, cut and as_of.
-- Numbers stay the texts they came as: Lua would write large ones with an exponent.
local fence_key = ARGV[1] .. 'fence'
local fence = redis.call('INCR', fence_key)
if fence < tonumber(ARGV[2]) then
  redis.call('SET', fence_key, ARGV[2])
end
local head = redis.call('HMGET', ARGV[1] .. 'head', 'epoch', 'version', 'cut', 'as_of')
return { redis.call('GET', fence_key), head }
